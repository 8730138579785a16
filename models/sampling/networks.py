"""The networks of rewards that a batch's rows name by their places."""

from __future__ import annotations

from typing import Any

from models.bundles.parts import PARTS, PartKind


class NetworkTable:
    """Networks that draw beside one denoiser; the place of one never changes."""

    def __init__(self) -> None:
        self._networks: list[tuple[PartKind, Any]] = []

    def append(self, part: str, network: Any) -> int:
        """The place of a network that acts as this part."""
        self._networks.append((PARTS[part], network))
        return len(self._networks) - 1

    def __getitem__(self, place: int) -> Any:
        """The network of a place: what its stage's step asks of one, see `runner`."""
        return self._networks[place][1]

    def nfe(self, place: int) -> int:
        """What one evaluation of it costs a row."""
        return self._networks[place][0].nfe
