"""From a bundle and its settings to an engine that can draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models.bundles.bundle import Bundle
from models.bundles.parts import PARTS
from models.offline.generator import load_generator
from models.rewards.opening import Context, open_part, try_classifier, try_part
from models.sampling.batch import Batch
from models.sampling.batches import Batches, Shape
from models.sampling.runner import Runner
from service.config import BackboneSettings
from service.engine.engine import Engine, Meter
from service.engine.networks import Loader, Networks
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
        prompt_chunks=settings.most_prompt_chunks,
    )
    device = settings.device if torch.cuda.is_available() else "cpu"
    example = backbone.encoder.encode(backbone.encoder.example, seed=0)
    context = Context(
        backbone.codec,
        backbone.schedule,
        backbone.shape,
        settings.threads,
        settings.device,
        backbone.differentiable,
        example,
    )
    # A graph was exported for one size.
    others = {} if settings.runtime == "onnx" else bundle.x_t_shapes

    def trial(part: str, network: Any, size: tuple[int, int]) -> None:
        try_part(part, network, replace(context, shape=others[size]))

    networks = Networks(trial=trial)
    for reward in bundle.manifest.rewards.values():
        for part, kind in PARTS.items():
            file = reward.parts.get(kind.file)
            # What goes through the denoiser can only where that runs in torch.
            if file is None or kind.opens is None or (kind.nfe and not context.denoise):
                continue
            if networks.missing({part: bundle.sha256(file)}):
                network = open_part(part, bundle.path(file), context)
                networks.add(part, bundle.sha256(file), network)
    if backbone.classifier is not None:
        classes = max(bundle.manifest.backbone.inputs.drawn_classes, default=0) + 1
        for shape in (backbone.shape, *others.values()):
            try_classifier(backbone.classifier, classes, replace(context, shape=shape))
    runner = Runner(
        bundle.backbone_sha256(settings.runtime),
        backbone.denoiser,
        backbone.schedule,
        networks,
        backbone.classifier,
    )

    def make(shape: Shape, rows: int) -> Batch:
        return Batch(backbone.schedule, shape, rows, device)

    return Engine(
        runner,
        Batches(make, backbone.shape, settings.max_batch, others),
        backbone.codec,
        settings.max_batch,
        meter,
        None if find is None else Loader(networks, context, find),
        backbone.encoder,
        settings.decode_batch,
    )
