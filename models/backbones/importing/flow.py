"""The schedule of a model of flow matching, spelled out for diffusers' Euler scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.backbones.importing.source import CannotImport, short
from models.diffusion.noise_schedule import FLOW, PIPELINE

CLASS = "FlowMatchEulerDiscreteScheduler"
SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Those that step along a flow too, where their file says so."""

WHERE = "scheduler/scheduler_config.json"
IGNORED = ("stochastic_sampling", "use_lu_lambdas")


def is_flow(raw: Mapping[str, Any]) -> bool:
    """Whether a scheduler's file is of flow matching."""
    return (
        str(raw.get("_class_name", "")).startswith(FLOW)
        or bool(raw.get("use_flow_sigmas"))
        or raw.get("prediction_type") == "flow_prediction"
    )


def spell_out_flow(
    raw: Mapping[str, Any], spacing: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A file of diffusers' as its Euler scheduler's configuration without defaults, and notes.

    `spacing` says how the model's pipeline calls its scheduler, see `noise_schedule.PIPELINE`.
    Raises CannotImport.
    """
    import diffusers

    name = str(raw.get("_class_name", CLASS))
    if not name.startswith(FLOW) and name not in SOLVERS:
        raise CannotImport(f"{WHERE}: {name} over a flow is not known here (known: {CLASS}, "
                           f"{', '.join(SOLVERS)})")  # fmt: skip
    if raw.get("invert_sigmas"):
        raise CannotImport(f"{WHERE}: invert_sigmas is not supported")
    given = dict(raw) | ({"shift": raw["flow_shift"]} if "flow_shift" in raw else {})
    given.pop("_class_name", None)
    try:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            **{k: v for k, v in given.items() if k in _known()}
        )
    except (TypeError, ValueError) as error:
        raise CannotImport(f"{WHERE}: {CLASS} cannot read it: {short(error)}") from None
    config = {key: scheduler.config[key] for key in sorted(_known() - set(IGNORED))}
    notes = [f"left out: {key}: Winnow's samplers have no such thing"
             for key in IGNORED if raw.get(key)]  # fmt: skip
    if name != CLASS:
        notes.append(f"{name}: its flow is kept; policies say how to step through it")
    return {"_class_name": CLASS, **config, PIPELINE: dict(spacing)}, notes


def _known() -> set[str]:
    import inspect

    import diffusers

    found = set(inspect.signature(diffusers.FlowMatchEulerDiscreteScheduler.__init__).parameters)
    return found - {"self"}
