"""Families at two sizes in one engine: each row is what the pipeline itself draws at that size.

Positions, and the shift of a flow schedule that follows their number, are the size's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.bundles.bundle import load
from models.diffusion.noise_schedule import read_config
from models.offline.generator import load_generator
from models.sampling.batch import Batch
from models.sampling.batches import Batches
from models.sampling.runner import Runner
from service.engine.engine import Engine
from service.engine.networks import Networks
from service.ports import DrawKey
from tests.engines import run_to_end, submit
from tests.families import TINY
from tests.imports import import_folder
from tests.models.test_families import TOLERANCE, Tiny, _sampler
from tests.parity import Made, Numbers, ask
from tests.plans import FREE

KEY = DrawKey(0, 0, 0)


@pytest.mark.parametrize("kind", TINY)
def test_rows_of_two_sizes_are_what_the_familys_pipeline_draws(kind: str, tmp_path: Path) -> None:
    pipeline = TINY[kind](tmp_path / "pipeline")
    side = 32 if kind == "sana" else 16
    own, wide = (side, side), (side, 64 if kind == "sana" else 24)
    tinies = {}
    for size in (own, wide):
        folder = tmp_path / f"{size[1]}"
        import_folder(tmp_path / "pipeline", folder, size=f"{size[0]}x{size[1]}")
        bundle = load(str(folder))
        scheduler = read_config(bundle.folder / "backbone")
        made = Made(kind, pipeline, scheduler, bundle, load_generator(bundle, "torch"))
        tinies[size] = Tiny(made)
    generator = tinies[own].made.generator
    engine = Engine(
        Runner(FREE.backbone, generator.denoiser, generator.schedule, Networks()),
        Batches(
            lambda shape, rows: Batch(generator.schedule, shape, rows, "cpu"),
            generator.shape,
            4,
            {wide: tinies[wide].made.generator.shape},
        ),
        Numbers(generator.codec),
        4,
        encoder=generator.encoder,
    )
    guided = 1.0 if kind in ("flux-schnell", "flux2-distilled") else 3.5
    plan = ask(6, _sampler(kind), prompt="a dog", guidance_scale=guided)
    sized = replace(plan, condition=replace(plan.condition, size=wide))
    callers = {}
    for size, asked in ((own, plan), (wide, sized)):
        callers[size] = submit(engine, asked, [KEY])
        engine.tick()
    run_to_end(engine)
    engine.decoder.wait()
    engine.decoder.close()
    for size, caller in callers.items():
        assert caller.fault is None
        assert tinies[size].difference(caller.results[KEY], plan, 0) <= TOLERANCE
