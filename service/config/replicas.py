"""How Ray Serve runs a deployment: how many replicas, and what each reserves of a machine."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from service.config.base import DAY_S, SHORTEST_S, Part

FINEST = 0.0001
"""Ray counts resources in ten-thousandths."""
RESERVED = re.compile(r"CPU|GPU|memory|object_store_memory|bundle|(accelerator_type|node):.*")
"""Resources that Ray gives by other keys, or makes itself."""


def _countable(quantity: float) -> float:
    if 0 < quantity < FINEST:
        raise ValueError(f"must be 0, or {FINEST:g} or more: Ray counts no finer")
    return quantity


def _whole_above_one(quantity: float) -> float:
    if quantity > 1 and quantity != int(quantity):
        raise ValueError("must be whole above 1: Ray gives a part of one GPU, or whole ones")
    return quantity


def _not_reserved(name: str) -> str:
    if RESERVED.fullmatch(name):
        raise ValueError(f"{name} is no resource of one's own: Ray has other keys for it")
    return name


def _without_null(value: str) -> str:
    if "\0" in value:
        raise ValueError("must hold no null character: no environment variable carries one")
    return value


Quantity = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_countable)]
Labels = dict[Annotated[str, Field(min_length=1)], str]


class Fallback(Part):
    """Another choice of machines, where none has the labels that are wanted first."""

    label_selector: Labels = Field(min_length=1)


class RuntimeEnv(Part):
    """What differs in a replica's process: environment variables. Code belongs into the image."""

    env_vars: dict[
        Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")],
        Annotated[str, AfterValidator(_without_null)],
    ] = Field({})


class ActorOptions(Part):
    """What a replica reserves, and where it may run: Ray's own words, as Serve takes them.

    `memory` is in bytes. `resources`, `accelerator_type` and `label_selector` choose among the
    machines of a cluster.
    """

    num_cpus: Quantity = 1.0
    num_gpus: Annotated[Quantity, AfterValidator(_whole_above_one)] | None = None
    memory: int | None = Field(None, ge=1, le=10**14)
    resources: dict[
        Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_not_reserved)], Quantity
    ] = Field({})
    accelerator_type: str | None = Field(None, pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    label_selector: Labels | None = Field(None, min_length=1)
    fallback_strategy: list[Fallback] | None = Field(None, min_length=1)
    runtime_env: RuntimeEnv | None = None

    def as_ray(self) -> dict[str, Any]:
        """The dict that Ray takes."""
        return self.model_dump(exclude_none=True)

    def demand(self) -> dict[str, float]:
        """What it reserves, by Ray's name of each resource; nothing that is 0."""
        found: dict[str, float] = {"CPU": self.num_cpus, "GPU": self.num_gpus or 0.0}
        found |= {"memory": float(self.memory or 0)} | self.resources
        if self.accelerator_type is not None:
            found[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: much for name, much in found.items() if much}


class Replicas(Part):
    """How Ray Serve runs a deployment; the names are Serve's. Times in seconds."""

    num_replicas: int = Field(1, ge=1, le=1000)
    max_ongoing_requests: int = Field(64, ge=1, le=100_000)
    ray_actor_options: ActorOptions = ActorOptions()
    health_check_period_s: float = Field(2.0, ge=SHORTEST_S, le=3600)
    health_check_timeout_s: float = Field(10.0, ge=SHORTEST_S, le=3600)
    graceful_shutdown_wait_loop_s: float = Field(0.2, ge=0.01, le=3600)
    graceful_shutdown_timeout_s: float = Field(20.0, ge=0, le=DAY_S)
    max_replicas_per_node: int | None = Field(None, ge=1, le=100)

    @property
    def least(self) -> int:
        """How many run at the least."""
        return self.num_replicas

    @property
    def most(self) -> int:
        """How many run at the most."""
        return self.num_replicas


class Autoscaling(Part):
    """How many backbones run: as many as the offered NFE need at this `utilization` of each.

    The load is a mean over `look_back_s`; it has to stay so for the delay before a replica is
    started or stopped.
    """

    min_replicas: int = Field(1, ge=1, le=1000)
    max_replicas: int = Field(ge=1, le=1000)
    utilization: float = Field(0.7, ge=0.01, le=1)
    look_back_s: float = Field(30.0, ge=1, le=3600)
    upscale_delay_s: float = Field(10.0, ge=0, le=DAY_S)
    downscale_delay_s: float = Field(300.0, ge=0, le=DAY_S)

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas: must not exceed max_replicas")
        return self


class BackboneReplicas(Replicas):
    """A backbone's replicas: a fixed number, or as many as the load needs."""

    # Of Serve's own calls: draws do not pass it.
    max_ongoing_requests: int = Field(1024, ge=1, le=100_000)
    autoscaling: Autoscaling | None = None

    @model_validator(mode="after")
    def _fixed_or_autoscaled(self) -> BackboneReplicas:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas: stands beside autoscaling: give one of them")
        return self

    @property
    def least(self) -> int:
        """How many run at the least."""
        return self.autoscaling.min_replicas if self.autoscaling else self.num_replicas

    @property
    def most(self) -> int:
        """How many run at the most."""
        return self.autoscaling.max_replicas if self.autoscaling else self.num_replicas
