"""Winnow's engine beside each family's own pipeline in diffusers, on tiny random weights.

From a prompt to pixels, 20 steps, one image and eight; the engine keeps a prompt that it has
encoded. Networks this small are all overhead, so this is the engine's and the adapter's against the
pipeline's. Runs take turns: the ratio is what to look at. `python -m loadtest.bench.families`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from loadtest.bench.report import save, show
from loadtest.bench.text_to_image import STEPS, compare
from models.bundles import bundle as bundles
from models.diffusion.condition import Condition
from service.config import BackboneSettings
from service.engine.engine import Engine, canary_plan
from service.engine.load import load_engine
from service.engine.scheduler import Draw, Ticket
from service.ports import DrawKey
from tests.families import SIZES, TINY
from tests.imports import import_folder

BATCHES = 1, 8
PROMPT, SCALE = "a cat", 3.5
UNGUIDED = ("flux-schnell", "flux2-distilled")


def main() -> None:
    """Run it, print one table, write JSON."""
    torch.set_num_threads(1)
    rows, figures = [], {}
    for kind in TINY:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            pipeline = TINY[kind](folder / "pipeline")
            import_folder(folder / "pipeline", folder / "bundle", size=SIZES[kind])
            engine = _engine(folder / "bundle")
            scale = 1.0 if kind in UNGUIDED else SCALE
            for n in BATCHES:
                ours, theirs = compare(
                    lambda e=engine, n=n, s=scale: _draw(e, n, s),
                    lambda p=pipeline, k=kind, n=n, s=scale: _call(p, k, n, s),
                )
                figures[f"{kind}, n = {n}"] = {"engine_s": ours, "diffusers_s": theirs}
                rows.append(
                    [kind, str(n), f"{1000 * ours:.0f}", f"{1000 * theirs:.0f}",
                     f"{theirs / ours:.2f}"]
                )  # fmt: skip
            engine.decoder.close()
    show(
        f"Families, tiny, {STEPS} steps: ms for n images",
        ["family", "n", "engine", "diffusers", "diffusers ÷ engine"],
        rows,
    )
    save("families", figures)


def _engine(folder: Path) -> Engine:
    settings = BackboneSettings(runtime="torch", max_batch=max(BATCHES), decode_batch=max(BATCHES))
    engine = load_engine(bundles.load(str(folder)), settings)
    engine.warm_up()
    return engine


def _draw(engine: Engine, n: int, scale: float) -> None:
    ticket = Ticket(lambda item: None, deadline=float("inf"))
    plan = canary_plan()
    plan = replace(
        plan,
        method=replace(plan.method, num_inference_steps=STEPS, sampler="euler"),
        condition=Condition(prompt=PROMPT, guidance_scale=scale),
    )
    engine.scheduler.add([Draw(plan, DrawKey(i, i, 0), ticket) for i in range(n)])
    engine.run_to_end()


def _call(pipeline: Any, kind: str, n: int, scale: float) -> None:
    side = int(SIZES[kind].partition("x")[0])
    given: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": STEPS}
    given |= {"true_cfg_scale" if kind == "qwen-image" else "guidance_scale": scale}
    if kind == "qwen-image":
        given["negative_prompt"] = [" "] * n
    if kind in ("pixart", "sana"):
        given |= {"use_resolution_binning": False, "clean_caption": False}
    pipeline(prompt=[PROMPT] * n, output_type="np", **given)


if __name__ == "__main__":
    main()
