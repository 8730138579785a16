"""Wrong values for every key of a configuration file, from the schema that reads it."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

INF, NAN = float("inf"), float("nan")
HUGE = 10**30
Path = tuple[str | int, ...]

SCALARS: dict[Any, list[Any]] = {
    bool: [0, 1, "yes", "true", "", 1.0],
    int: [True, 1.5, "1", "a", "", -1, HUGE, INF, NAN],
    float: [True, "1", "a", "", -1, -0.5, HUGE, 1e300, INF, -INF, NAN],
    str: [1, True, 1.5, "", "\x07", " "],
}
NOT_A_LIST: list[Any] = ["a", 1, True, {"a": 1}]
NOT_A_MAPPING: list[Any] = ["a", "", 1, True, [1]]
FREE_TEXT = {"env_vars", "label_selector"}
"""Mappings whose values may be any text."""


@dataclass(frozen=True)
class Key:
    """A key of the file, by its path, with its type and what is wrong in its place."""

    path: Path
    optional: bool
    wrong: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The path as a fault names it."""
        return ".".join(str(part) for part in self.path)


def keys(model: type[BaseModel], document: Any, path: Path = ()) -> Iterator[Key]:
    """Every key below a model; `document` has the names that mappings of parts use."""
    for name, field in model.model_fields.items():
        here = (*path, name)
        optional, kind = _plain(field)
        yield Key(here, optional, tuple(_wrong(kind, name)))
        yield from _below(kind, (document or {}).get(name), here)


def _below(kind: Any, document: Any, here: Path) -> Iterator[Key]:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from keys(kind, document, here)
    elif origin is dict and _is_part(_bare(arguments[1])):
        name = next(iter(document or {}), "x")
        yield from keys(_bare(arguments[1]), (document or {}).get(name), (*here, name))
    elif origin is list and _is_part(_bare(arguments[0])):
        yield from keys(_bare(arguments[0]), (document or [None])[0], (*here, 0))


def parts(model: type[BaseModel], document: Any, path: Path = ()) -> set[Path]:
    """The paths of all mappings that a model reads: a key too many in any of them is a fault."""
    return {path} | {key.path[:-1] for key in keys(model, document, path)}


def _plain(field: FieldInfo) -> tuple[bool, Any]:
    """Whether None is taken, and the type without that and without annotations."""
    kind = _bare(field.annotation)
    if get_origin(kind) in (Union, types.UnionType):
        others = [one for one in get_args(kind) if one is not type(None)]
        assert len(others) == 1, f"{kind}: say here what is wrong for it"
        return True, _bare(others[0])
    return False, kind


def _bare(kind: Any) -> Any:
    return _bare(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _wrong(kind: Any, name: str) -> Iterator[Any]:
    origin, arguments = get_origin(kind), [_bare(one) for one in get_args(kind)]
    if kind in SCALARS:
        yield from SCALARS[kind]
        yield from ([], {}, [1], {"a": 1})
    elif origin is Literal:
        yield from ("", "nonsense", 1, True, NAN, [], {})
    elif origin is tuple:
        yield from NOT_A_LIST
        yield from ([], [1], [1, 2, 3], ["1", "2"], [NAN, INF], [2, 1], [-1, HUGE])
    elif origin is list:
        yield from NOT_A_LIST
        yield from ([None], [[]], [{"nonsense": 1}])
        if arguments[0] in SCALARS:
            yield from ([value] for value in SCALARS[arguments[0]] if value != " ")
    elif origin is dict:
        yield from NOT_A_MAPPING
        yield from ({"": 1}, {"a": None}, {1: 1}, {"a": [1]})
        if name not in FREE_TEXT and arguments[1] in SCALARS:
            yield from ({"a": value} for value in SCALARS[arguments[1]])
    elif _is_part(kind):
        yield from NOT_A_MAPPING
        yield {"nonsense": 1}
    else:
        raise AssertionError(f"{kind}: say here what is wrong for it")


def put(document: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of the document with a value at a path, through mappings made on the way."""
    changed = copy.deepcopy(document)
    here: Any = changed
    for part in path[:-1]:
        if isinstance(part, int):
            while len(here) <= part:
                here.append({})
            here = here[part]
        else:
            following = path[path.index(part) + 1]
            if here.get(part) is None:
                here[part] = [] if isinstance(following, int) else {}
            here = here[part]
    here[path[-1]] = value
    return changed
