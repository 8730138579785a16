"""A YAML file in which every key stands once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from service.config.base import ConfigError

MOST_VALUES = 100_000
"""A few lines of aliases of aliases stand for more than any machine can hold."""


def read_document(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises ConfigError for what cannot be read, is no mapping, or says a key twice: YAML's readers
    silently take the last.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None and _values(node, {}) > MOST_VALUES:
            raise ConfigError(
                f"{path}: its aliases stand for more than {MOST_VALUES} values: write out what is "
                "meant"
            )
        document = None if node is None else loader.construct_document(node)
        repeated = [] if node is None else list(_repeated(node))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML that can be read: {said}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping with `applications`")
    if repeated:
        raise ConfigError("\n".join(repeated))
    return document


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with each alias written out."""
    if id(node) not in known:
        known[id(node)] = 0  # an anchor within itself, which no schema takes
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _repeated(
    node: yaml.Node, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[str]:
    """A line for each key that stands twice in its mapping.

    What an anchor names is looked at once, however many aliases there are.
    """
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, part in enumerate(node.value):
            yield from _repeated(part, (*path, str(index)), seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                here = (*path, key.value)
                if (said := first.setdefault((key.tag, key.value), key)) is not key:
                    lines = " and ".join(str(one.start_mark.line + 1) for one in (said, key))
                    yield f"{'.'.join(here)}: stands twice, in lines {lines}"
                yield from _repeated(value, here, seen)
