"""The parts of a reward in one table: what it may consist of, and where in a draw each acts.

A new guidance method is a module with its network and a row of `PARTS`. The table imports no
network, because what decides and what stores know parts by name and never load torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from models.diffusion.method import Method


class Stage(Enum):
    """Where in a draw a network acts; of one stage a draw has one network at most."""

    STEERS = "steers"  # its gradient at x_t bends x̂_0
    BACKWARD = "backward"  # Adam steps climb it at x̂_0
    PROBES = "probes"  # its score of x̂_0 may end the draw
    JUDGES = "judges"  # its score of the finished image decides

    def asked_by(self, method: Method) -> bool:
        """Whether draws of a method, which are judged, need a network at this stage."""
        return {
            Stage.STEERS: method.censor_scale > 0,
            Stage.BACKWARD: method.backward_steps > 0,
            Stage.PROBES: bool(method.probes),
            Stage.JUDGES: True,
        }[self]


@dataclass(frozen=True)
class PartKind:
    """One kind of network.

    `file` is the file of a reward that it is made of, by its name in the manifest, and `suffix` the
    format. `opens` is the `module:function` that makes the network from (path, `opening.Context`);
    None for a judge, which no backbone opens. `guidance` is the setting of a method that chooses it
    among those that steer. `nfe` is what one evaluation of it costs a row: with more than 0 its
    gradient goes through the denoiser, which has to run in torch.
    """

    name: str
    stage: Stage
    file: str
    suffix: str
    opens: str | None = None
    guidance: str | None = None
    nfe: int = 0

    def __post_init__(self) -> None:
        if self.nfe and self.stage is not Stage.STEERS:
            raise ValueError(f"{self.name}: NFE are counted of what steers alone")

    def asked_by(self, method: Method) -> bool:
        """Whether draws of a method, which are judged, need this part."""
        return self.stage.asked_by(method) and self.guidance in (None, method.guidance)


PARTS: dict[str, PartKind] = {
    kind.name: kind
    for kind in (
        PartKind(
            "guide", Stage.STEERS, "guide", ".safetensors",
            opens="models.rewards.opening:time_guide", guidance="time",
        ),
        PartKind(
            "distilled", Stage.STEERS, "distilled", ".onnx",
            opens="models.rewards.opening:distilled_guide", guidance="distilled",
        ),
        PartKind(
            "forward", Stage.STEERS, "clean_guide", ".safetensors",
            opens="models.rewards.opening:forward_guide", guidance="forward", nfe=3,
        ),
        PartKind(
            "clean_guide", Stage.BACKWARD, "clean_guide", ".safetensors",
            opens="models.rewards.opening:clean_guide",
        ),
        PartKind(
            "probe", Stage.PROBES, "probe", ".onnx", opens="models.rewards.opening:probe"
        ),
        PartKind("judge", Stage.JUDGES, "judge", ".onnx"),
    )
}  # fmt: skip

IMAGES = ("canary", "control")
"""PNGs of a reward: one that is surely malign, and one that is surely benign."""


class MissingPart(LookupError):
    """A reward has no file that a method needs; `file` is its name in a manifest."""

    def __init__(self, file: str) -> None:
        super().__init__(f"the reward has no `{file}`")
        self.file = file


def files() -> set[str]:
    """The names that a reward's files may have."""
    return {kind.file for kind in PARTS.values()} | set(IMAGES)


def guidances() -> list[str]:
    """What a method's `guidance` may be."""
    return [kind.guidance for kind in PARTS.values() if kind.guidance is not None]


def parts_for(method: Method, files: Mapping[str, str]) -> dict[str, str]:
    """The parts that judged draws of a method need, each with the value of its file in `files`.

    Raises MissingPart.
    """
    found = {}
    for name, kind in PARTS.items():
        if kind.asked_by(method):
            if kind.file not in files:
                raise MissingPart(kind.file)
            found[name] = files[kind.file]
    return found


def at(stage: Stage, parts: Mapping[str, str]) -> str | None:
    """The network of a stage among a draw's parts; None without one."""
    return next((name for part, name in parts.items() if PARTS[part].stage is stage), None)
