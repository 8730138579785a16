"""Serve's handles: where replicas listen, and the rare calls that all of them must hear.

Draws and scores do not go this way (`service.rpc`). Ray's faults become Winnow's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from service.engine.admission import Workload
from service.errors import BackendUnavailable, CensorUnavailable, WinnowError
from service.ports import Pixels
from service.rpc.backbone_client import GrpcBackboneClient
from service.rpc.codec import ACCEPTING, WORKLOAD
from service.rpc.judge_client import GrpcJudgeClient
from service.rpc.replicas import ReplicaPool
from service.serving.assemble import Backends

log = logging.getLogger("winnow.handles")

Handles = Mapping[str, DeploymentHandle[Any]]
State = TypeVar("State")

FIND_S = 5.0
CANARY_S = 5.0
LOAD_S = 60.0
METRICS_S = 2.0
FAULTS = (RayError, RayServeException, TimeoutError)


def backends(backbones: Handles, judges: Handles, ingresses: int = 1) -> Backends:
    """The replicas of each model, for one of so many ingresses."""

    def workload(message: bytes) -> Workload:
        return WORKLOAD.unpack(message)[0]

    def taking(message: bytes) -> bool:
        return ACCEPTING.unpack(message)[0]

    async def load_everywhere(model: str, weights: Mapping[str, str]) -> None:
        await load(backbones[model], judges[model], weights)

    return Backends(
        GrpcBackboneClient(
            {name: _replicas(handle, workload) for name, handle in backbones.items()}, ingresses
        ),
        GrpcJudgeClient({name: _replicas(handle, taking) for name, handle in judges.items()}),
        partial(score_everywhere, judges),
        load_everywhere,
        partial(pages, [*backbones.values(), *judges.values()]),
    )


def _replicas(handle: DeploymentHandle[Any], read: Callable[[bytes], State]) -> ReplicaPool[State]:
    return ReplicaPool(handle.deployment_name, partial(_find, handle), read)


async def _find(handle: DeploymentHandle[Any]) -> list[Any]:
    found: list[Any] = await handle.broadcast("address").results_async(
        timeout_s=FIND_S, return_exceptions=True
    )
    return found


async def load(
    backbone: DeploymentHandle[Any], judge: DeploymentHandle[Any], weights: Mapping[str, str]
) -> None:
    """Bring networks into every replica of a model, by part and sha256 name.

    Each verifies and tries them first. Raises BackendUnavailable or CensorUnavailable if one of
    them cannot, or none runs: nothing would have been tried.
    """
    for handle, who, fault in (
        (backbone, "the backbone", BackendUnavailable),
        (judge, "the judge", CensorUnavailable),
    ):
        try:
            await handle.broadcast("load", dict(weights)).results_async(timeout_s=LOAD_S)
        except FAULTS as error:
            raise cause(error) or fault(failure_message(who, error)) from error


async def score_everywhere(
    judges: Handles, model: str, judge: str, pixels: Pixels
) -> list[float | None]:
    """The score of each of a model's judges, None of one that failed.

    Raises CensorUnavailable when they did not all answer in time.
    """
    try:
        call = judges[model].broadcast("score", judge, [pixels])
        answers = await call.results_async(timeout_s=CANARY_S, return_exceptions=True)
        return [None if isinstance(one, BaseException) else one[0] for one in answers]
    except FAULTS as error:
        raise cause(error) or CensorUnavailable(failure_message("a judge", error)) from error


async def pages(deployments: Iterable[DeploymentHandle[Any]]) -> list[tuple[str, str]]:
    """The metrics of each replica that answers: one that does not is missing from the page."""
    found: list[tuple[str, str]] = []
    for handle in deployments:
        try:
            answers = await handle.broadcast("metrics").results_async(
                timeout_s=METRICS_S, return_exceptions=True
            )
        except FAULTS:
            continue
        found += [
            (f"{handle.deployment_name}-{number}", text)
            for number, text in enumerate(answers)
            if isinstance(text, str)
        ]
    return found


def cause(error: Exception) -> WinnowError | None:
    """The WinnowError that a replica raised, taken out of Ray's wrapping."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return cause if isinstance(cause, WinnowError) else None


def failure_message(who: str, error: Exception) -> str:
    """What a caller is told of a replica that did not answer; the log says more."""
    log.warning("%s did not answer", who, exc_info=error)
    return f"{who} did not answer ({type(error).__name__}); it is restarted by itself"
