"""The networks of rewards that one backbone has, and those that come while its engine runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from models.bundles.parts import PARTS, Stage
from models.diffusion.condition import Size, size_text
from models.rewards.opening import Context, open_part
from models.sampling.networks import NetworkTable
from service.errors import BackendUnavailable
from service.ports import Find

log = logging.getLogger("winnow.engine")

Trial = Callable[[str, Any, tuple[int, int]], None]
"""(part, network, size) to nothing; raises where the network cannot take that size."""


class Networks(NetworkTable):
    """Networks by part and sha256 name.

    One may come while a tick runs: its name is known only after it has its place, so no thread
    sees one without the other.
    """

    def __init__(
        self, networks: Mapping[tuple[str, str], Any] | None = None, trial: Trial | None = None
    ) -> None:
        """`trial` lets a part's network see a canary of another size than the default."""
        super().__init__()
        self._places: dict[tuple[str, str], int] = {}
        self._trial = trial
        self._unfit: dict[tuple[str, str, Size], str | None] = {}
        for (part, name), network in (networks or {}).items():
            self.add(part, name, network)

    def add(self, part: str, name: str, network: Any) -> None:
        """Know another network from now on."""
        self._places[part, name] = self.append(part, network)

    @property
    def names(self) -> list[tuple[str, str]]:
        """The part and the sha256 name of each."""
        return list(self._places)

    def missing(self, parts: Mapping[str, str]) -> dict[str, str]:
        """Of a plan's parts those that are not here; a judge never is."""
        return {part: name for part, name in _opened(parts) if (part, name) not in self._places}

    def places(self, parts: Mapping[str, str]) -> dict[Stage, int]:
        """The place of each of a plan's parts, by stage. Raises BackendUnavailable."""
        for part, name in self.missing(parts).items():
            raise BackendUnavailable(f"{part} {name} is not loaded on this replica")
        return {PARTS[part].stage: self._places[part, name] for part, name in _opened(parts)}

    def require_size(self, parts: Mapping[str, str], size: Size) -> None:
        """Let a plan's networks see a canary of its size before their first rows of it.

        Raises BackendUnavailable where one cannot take that size, as a graph that was exported for
        another. At the default size each was tried when it was opened.
        """
        if size is None or self._trial is None:
            return
        for part, name in _opened(parts):
            if (part, name, size) not in self._unfit:
                why: str | None = None
                try:
                    self._trial(part, self[self._places[part, name]], size)
                except Exception as error:  # a graph's runtime has one for each of its faults
                    log.warning("%s %s at %s", part, name, size_text(size), exc_info=error)
                    why = f"{part} {name} cannot take images of {size_text(size)}"
                self._unfit[part, name, size] = why
            if (why := self._unfit[part, name, size]) is not None:
                raise BackendUnavailable(why)


class Loader:
    """Brings networks by hash, verified, and tried before their first use.

    Any thread may call it while the engine's thread runs.
    """

    def __init__(self, networks: Networks, context: Context, find: Find) -> None:
        self._networks = networks
        self._context = context
        self._find = find
        self._lock = threading.Lock()

    def load(self, parts: Mapping[str, str]) -> None:
        """Load what is not there yet; a judge is none of the backbone's.

        Blocks. Raises BackendUnavailable, and what could not be verified or tried stays out.
        """
        with self._lock:
            for part, name in self._networks.missing(parts).items():
                try:
                    path = self._find(name, PARTS[part].suffix)
                    network = open_part(part, path, self._context)
                except Exception as error:  # whatever is wrong with it, it is not used
                    log.error("%s %s was refused", part, name, exc_info=error)
                    raise BackendUnavailable(f"{part} {name} cannot be loaded: {error}") from error
                self._networks.add(part, name, network)


def _opened(parts: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The parts that a backbone opens. Raises BackendUnavailable for one that nobody here knows."""
    for part, name in parts.items():
        if part not in PARTS:
            raise BackendUnavailable(f"this replica knows no part {part!r} of a reward")
        if PARTS[part].opens is not None:
            yield part, name
