"""The resources of this machine, compared with those that replicas reserve."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cache

from service.config import Replicas, Settings

UNITS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
"""Ray's resources that have a key of their own in `ray_actor_options`."""
SLACK = 1e-6


def cpus() -> int:
    """The number of CPUs that `winnow serve` gives Ray."""
    return max(2, os.cpu_count() or 2)


def faults(settings: Settings) -> Iterator[str]:
    """A line for each resource that replicas would wait for without end, and missing GPUs."""
    deployments, has = settings.deployments(), resources()
    yield from _totals(deployments, has)
    yield from _split_gpus(deployments, int(has.get("GPU", 0)))
    yield from _metrics_ports(settings, deployments)
    for path, replicas in deployments.items():
        options = replicas.ray_actor_options
        if options.label_selector or options.fallback_strategy:
            yield (
                f"{path}.ray_actor_options.label_selector: chooses among the machines of a "
                "cluster, and this is one machine: leave it and fallback_strategy out"
            )
        most = replicas.max_replicas_per_node
        if most is not None and replicas.least > most:
            yield (
                f"{path}.max_replicas_per_node: {most}, and this one machine is to hold "
                f"{replicas.least}: leave it out"
            )
    for name, model in settings.models.items():
        for part, device, runtime in (
            ("backbone", model.backbone.device, model.backbone.runtime),
            ("judge", model.judge.device, "onnx"),
        ):
            if device != "cpu" and (reason := _lacks(device, runtime, int(has.get("GPU", 0)))):
                yield f"models.{name}.{part}.device: {device}: {reason}"


@cache
def resources() -> Mapping[str, float]:
    """The resources that Ray will find here, by Ray's names. Memory in bytes."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    found = ResourceAndLabelSpec(num_cpus=cpus()).resolve(is_head=True)
    has = found.to_resource_dict()  # type: ignore[no-untyped-call]
    return {name: float(much) for name, much in has.items()}


def _totals(deployments: Mapping[str, Replicas], has: Mapping[str, float]) -> Iterator[str]:
    asked: dict[str, dict[str, float]] = {}
    for path, replicas in deployments.items():
        for name, much in replicas.ray_actor_options.demand().items():
            asked.setdefault(name, {})[path] = much * replicas.least
    for name, parts in asked.items():
        needed, there = sum(parts.values()), has.get(name, 0.0)
        if needed > there + SLACK:
            most = max(parts, key=lambda path: parts[path])
            key = UNITS.get(name, "resources")
            if name.startswith("accelerator_type:"):
                key, needed = "accelerator_type", 1
            yield (
                f"{most}.ray_actor_options.{key}: the replicas ask for {needed:g} {name} in all, "
                f"and this machine has {there:g}: give them less, or serve fewer models"
            )


def _split_gpus(deployments: Mapping[str, Replicas], gpus: int) -> Iterator[str]:
    """Fractions of GPUs whose sum is there, but that fit on no set of whole ones."""
    parts = sorted(
        (
            (replicas.ray_actor_options.num_gpus or 0.0, path)
            for path, replicas in deployments.items()
            for _ in range(replicas.least)
            if replicas.ray_actor_options.num_gpus
        ),
        reverse=True,
    )
    if sum(much for much, _ in parts) > gpus + SLACK:
        return  # said already
    free = [1.0] * gpus
    for much, path in parts:
        for _ in range(max(int(much), 1)):
            share = min(much, 1.0)
            place = next((i for i, left in enumerate(free) if left + SLACK >= share), None)
            if place is None:
                yield (
                    f"{path}.ray_actor_options.num_gpus: {much:g} of one GPU is left on none of "
                    f"the {gpus} here, beside what the others take"
                )
                return
            free[place] -= share


def _metrics_ports(settings: Settings, deployments: Mapping[str, Replicas]) -> Iterator[str]:
    """Too few ports for all replicas that export metrics; Labelling exports none."""
    if settings.metrics_ports is None:
        return
    first, last = settings.metrics_ports
    most = sum(it.most for path, it in deployments.items() if path != "feedback.replicas")
    if most > last - first + 1:
        yield (
            f"metrics_ports: {first} to {last} are {last - first + 1} ports, and there may be "
            f"{most} replicas, of which each takes one: give them a wider range"
        )


def _lacks(device: str, runtime: str, gpus: int) -> str | None:
    """Why this device is not there for a runtime; None if it is."""
    number = int(device.partition(":")[2] or 0)
    if number >= gpus:
        return f"Ray finds {gpus or 'no'} GPU{'s' * (gpus > 1)} on this machine: say cpu"
    if runtime == "onnx":
        import onnxruntime

        from models.onnx.session import CUDA

        if CUDA not in onnxruntime.get_available_providers():
            return (
                f"this ONNX Runtime has no {CUDA}, and would run on the CPU: install "
                "onnxruntime-gpu, or say cpu"
            )
        return None
    import torch

    return None if torch.cuda.is_available() else "this torch sees no GPU: say cpu"
