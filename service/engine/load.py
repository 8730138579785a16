"""From a bundle and its settings to an engine that can draw."""

from __future__ import annotations

import torch

from models.backbones.runtime import DTYPES, TorchDenoiser, load_denoiser
from models.bundle import Bundle
from models.codec import Codec
from models.guidance import CleanReward, ForwardGuide, Guide
from models.rewards.ensemble import Ensemble
from models.rewards.graphs import DistilledGuide, Probe
from models.schedule import NoiseSchedule, read_config
from service.config import BackboneSettings
from service.engine.batch import Batch
from service.engine.engine import Engine, Meter
from service.engine.runner import Runner


def load_engine(bundle: Bundle, settings: BackboneSettings, meter: Meter | None = None) -> Engine:
    """The step engine for a bundle's backbone, with every guide that the bundle holds.

    Sets the number of torch's threads for this process.
    """
    torch.set_num_threads(settings.threads)
    manifest = bundle.manifest.backbone
    folder = bundle.folder / manifest.folder
    schedule = NoiseSchedule.from_diffusers(read_config(folder))
    denoiser = load_denoiser(
        folder,
        bundle.path(manifest.onnx),
        runtime=settings.runtime,
        device=settings.device,
        dtype=settings.dtype,
        compile_mode=settings.compile_mode,
        threads=settings.threads,
    )
    device = settings.device if torch.cuda.is_available() else "cpu"
    codec = Codec(manifest.pixel_shuffle)
    rewards = bundle.manifest.rewards.values()
    guides: dict[str, Guide] = {
        bundle.sha256(reward.guide): Ensemble.load(bundle.path(reward.guide)).to(device)
        for reward in rewards
    }
    clean = {
        bundle.sha256(reward.clean_guide): CleanReward(
            Ensemble.load(bundle.path(reward.clean_guide)).to(device), codec
        )
        for reward in rewards
    }
    threads, on = settings.threads, settings.device
    guides |= {
        bundle.sha256(reward.distilled): DistilledGuide(bundle.path(reward.distilled), threads, on)
        for reward in rewards
        if reward.distilled
    }
    probes = {
        bundle.sha256(reward.probe): Probe(bundle.path(reward.probe), threads, on)
        for reward in rewards
        if reward.probe
    }
    if settings.forward_guidance:
        unet = TorchDenoiser(folder, device, DTYPES[settings.dtype]).unet
        guides |= {name: ForwardGuide(unet, schedule, reward) for name, reward in clean.items()}
    return Engine(
        Runner(bundle.denoiser_sha256(settings.runtime), denoiser, schedule, guides, clean, probes),
        Batch(schedule, bundle.x_t_shape, settings.max_batch, device),
        codec,
        settings.max_batch,
        meter,
    )
