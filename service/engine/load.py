"""From a bundle and its settings to an engine that can draw."""

from __future__ import annotations

import torch

from models.bundle import Bundle
from models.generate import load_generator
from models.guidance import CleanReward, Guide
from service.config import BackboneSettings
from service.engine.batch import Batch
from service.engine.engine import Engine, Meter
from service.engine.loader import Loader
from service.engine.networks import Networks
from service.engine.runner import Runner
from service.ports import Find


def load_engine(
    bundle: Bundle,
    settings: BackboneSettings,
    meter: Meter | None = None,
    find: Find | None = None,
) -> Engine:
    """The step engine for a bundle's backbone, with every guide that the bundle holds, and
    its classifier.

    With `find` it can load others while it runs. Sets the number of torch's threads for this
    process.
    """
    torch.set_num_threads(settings.threads)
    backbone = load_generator(
        bundle,
        runtime=settings.runtime,
        device=settings.device,
        dtype=settings.dtype,
        compile_mode=settings.compile_mode,
        threads=settings.threads,
        forward=settings.forward_guidance,
    )
    device = settings.device if torch.cuda.is_available() else "cpu"
    example = backbone.encoder.encode(backbone.encoder.example, seed=0)
    networks = Networks(
        backbone.codec,
        backbone.schedule,
        backbone.shape,
        settings.threads,
        settings.device,
        backbone.differentiable,
        example,
    )
    guides: dict[str, Guide] = {}
    clean: dict[str, CleanReward] = {}
    probes = {}
    for reward in bundle.manifest.rewards.values():
        files = {"guide": reward.guide, "distilled": reward.distilled}
        if backbone.differentiable is not None:
            files["forward"] = reward.clean_guide
        for part, file in files.items():
            if file is not None:
                guides[bundle.sha256(file)] = networks.guide(part, bundle.path(file))
        if reward.clean_guide is not None:
            clean[bundle.sha256(reward.clean_guide)] = networks.clean_guide(
                bundle.path(reward.clean_guide)
            )
        if reward.probe is not None:
            probes[bundle.sha256(reward.probe)] = networks.probe(bundle.path(reward.probe))
    if backbone.classifier is not None:
        classes = bundle.manifest.backbone.inputs.drawn_classes
        networks.try_classifier(backbone.classifier, max(classes, default=0) + 1)
    runner = Runner(
        bundle.backbone_sha256(settings.runtime),
        backbone.denoiser,
        backbone.schedule,
        guides,
        clean,
        probes,
        backbone.classifier,
    )
    return Engine(
        runner,
        Batch(backbone.schedule, backbone.shape, settings.max_batch, device, example),
        backbone.codec,
        settings.max_batch,
        meter,
        None if find is None else Loader(runner, networks, find),
        backbone.encoder,
        settings.decode_batch,
    )
