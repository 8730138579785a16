"""The Labelling deployment: chooses what people are asked, and trains rewards in the background."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from models.bundles import bundle as bundles
from models.bundles.bundle import Bundle
from models.diffusion.condition import Condition
from service import config, logs
from service.config import BackboneSettings, Settings
from service.errors import BackendUnavailable, StoreUnavailable
from service.policies.registry import PolicyRegistry
from service.policies.seeding import configured_policies
from service.serving import handles
from service.serving.assemble import sampling_loop
from service.serving.handles import Handles, cause, failure_message
from service.store.datasets import Dataset, ImageToLabel
from service.store.store import Store

log = logging.getLogger("winnow.labelling")


class Labelling:
    """What Serve runs: a labelling service, and a thread for trainings that gives way to everything
    else."""

    def __init__(self, settings: Settings, backbones: Handles, judges: Handles) -> None:
        # Here, not above: the process that deploys imports this file, and needs no torch.
        import torch

        from service.jobs.runner import JobRunner
        from service.labelling.reward_training import RewardTraining
        from service.labelling.service import LabellingService
        from service.labelling.subject import Subject, uncensored

        logs.set_up("labelling")
        torch.set_num_threads(settings.feedback.threads)
        loaded = {name: bundles.load(model.bundle) for name, model in settings.models.items()}
        policies = configured_policies(settings, loaded)
        replicas = handles.backends(backbones, judges)
        subjects = {}
        for name, bundle in loaded.items():
            default = policies[settings.default_policy]
            ours = [one for one in policies.values() if one.settings.model == name]
            spec = (default if default in ours else ours[0]).settings
            runtime = settings.models[name].backbone.runtime
            backbone = bundle.manifest.backbone
            subjects[name] = Subject(
                plan=uncensored(
                    name,
                    bundle.backbone_sha256(runtime),
                    spec.method(spec.num_inference_steps[0]),
                ),
                shape=(backbone.height, backbone.width, backbone.channels),
                inputs=backbone.inputs,
                generator=partial(
                    generator, bundle, settings.models[name].backbone, settings.feedback.threads
                ),
                features=partial(features, bundle),
            )
        self._store = store = Store(*config.store_urls(settings.store, os.environ))
        policy = PolicyRegistry(store, policies).known
        self._labelling = LabellingService(
            store=store,
            sampling_loops={
                name: sampling_loop(model, replicas.backbone_client, replicas.judge_client)
                for name, model in settings.models.items()
            },
            subjects=subjects,
            policy=policy,
            candidates=settings.feedback.candidates,
            within=timedelta(hours=settings.feedback.session_hours),
            deadline_s=settings.limits.deadline_s,
        )
        training = RewardTraining(store, subjects, policy)
        threading.Thread(target=training.prepare, name="prepare", daemon=True).start()
        self._jobs = JobRunner(store.jobs, [training.kind])
        log.info("labelling is ready")

    async def propose(
        self,
        dataset: Dataset,
        size: int,
        strategy: str | None,
        annotator: str,
        exclude_batches: Sequence[str],
        policy: str | None = None,
    ) -> list[ImageToLabel]:
        """See `LabellingService.propose`."""
        return await self._labelling.propose(
            dataset, size, strategy, annotator, exclude_batches, policy
        )

    async def check_health(self) -> None:
        """Serve restarts the replica when this raises."""
        self._jobs.check()

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        if hasattr(self, "_jobs"):  # it did start
            self._jobs.close()
            self._store.close()


class LabellingHandle:
    """The labelling service behind its Serve handle: Ray's faults become Winnow's."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def propose(
        self,
        dataset: Dataset,
        size: int,
        strategy: str | None,
        annotator: str,
        exclude_batches: Sequence[str],
        policy: str | None = None,
    ) -> list[ImageToLabel]:
        """See `LabellingService.propose`."""
        response = self._handle.propose.remote(
            dataset, size, strategy, annotator, list(exclude_batches), policy
        )
        try:
            shown: list[ImageToLabel] = await response
            return shown
        except (RayError, RayServeException) as error:
            raise cause(error) or BackendUnavailable(failure_message("labelling", error)) from error


def features(bundle: Bundle, name: str) -> Path:
    """The file of a bundle's features of this name.

    Raises ValueError for a name that the bundle does not have, and StoreUnavailable when the file
    was changed since the bundle was verified.
    """
    known = bundle.manifest.features
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"bundle {bundle.manifest.name!r} has no features {name!r} (has {there})")
    path = bundle.path(known[name].file)
    if bundles.sha256_name(path) != bundle.sha256(known[name].file):
        raise StoreUnavailable(f"{path} was changed since the service started")
    return path


def generator(
    bundle: Bundle,
    settings: BackboneSettings,
    threads: int,
    condition: Callable[[int], Condition] = lambda seed: Condition(),
) -> Any:
    """What a training draws with: the backbone as it is served, in this process.

    `condition` says what the image of a seed is to show.
    Raises StoreUnavailable when a file of it was changed since the bundle was verified.
    """
    from models.offline.generator import load_generator

    manifest = bundle.manifest.backbone
    folder = bundle.folder / manifest.folder
    for name in bundle.manifest.files:
        path = bundle.path(name)
        ours = name == manifest.onnx or path.is_relative_to(folder)
        if ours and bundles.sha256_name(path) != bundle.sha256(name):
            raise StoreUnavailable(f"{path} was changed since the service started")
    found = load_generator(
        bundle,
        runtime=settings.runtime,
        device=settings.device,
        dtype=settings.dtype,
        threads=threads,
        forward=settings.forward_guidance,
        prompt_chunks=settings.most_prompt_chunks,
    )
    return replace(found, condition=condition)
