"""What shares a batch, and how much of it changes an image: `python -m loadtest.bench.tolerance`.

The same seeds are drawn alone and among others, by the shipped graphs through the whole engine, and
the judge scores them alone and together. Guided, probed and plain draws share the batches.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from loadtest.bench.report import save, show
from service.cli.common import DEFAULT_CONFIG, read_settings
from service.config import Settings
from service.policies.policy import Overrides, resolve
from service.ports import DrawKey, Pixels
from service.serving.in_process import InProcessService

MODEL, SEEDS = "mnist-sevens", 48
POLICIES = ("no-crossbar", "no-crossbar-guided", "only-crossbar", "none")


async def _draw(service: InProcessService) -> dict[tuple[str, int], Pixels]:
    """Draw 0 of every seed under every policy, all asked for at once."""
    found: dict[tuple[str, int], Pixels] = {}

    async def one(name: str) -> None:
        # Nothing is judged here, and without calibrations nothing could be.
        policy = service.policies[name].without_judge()
        plan = resolve(policy, Overrides(), seed=0, admin=True)
        # Nothing is abandoned: what a probe would stop is compared too.
        plan = replace(plan, probe_thresholds=(0.0,) * len(plan.method.probes))
        keys = [DrawKey(i, i, 0) for i in range(SEEDS)]
        async with aclosing(service.backends.draw(plan, keys, 600.0)) as groups:
            async for group in groups:
                for result in group:
                    assert result.pixels is not None
                    found[name, result.key.seed] = result.pixels

    await asyncio.gather(*(one(name) for name in POLICIES))
    return found


def _with(runtime: str, slots: int) -> Settings:
    document = read_settings(DEFAULT_CONFIG).model_dump()
    document["models"][MODEL]["backbone"] |= {"runtime": runtime, "max_batch": slots}
    return Settings.model_validate(document)


def main() -> None:
    """Measure, print one table, and write JSON."""
    rows = []
    for runtime in ("onnx", "torch"):
        images: dict[int, dict[tuple[str, int], Pixels]] = {}
        for slots in (1, 5, 16):
            with InProcessService(_with(runtime, slots), MODEL, calibrated=False) as service:
                images[slots] = asyncio.run(_draw(service))
                judge = service.policies["no-crossbar"].judge
                assert judge is not None
                pixels = list(images[slots].values())
                together = service.backends.judges.score(judge, pixels)
                alone = [service.backends.judges.score(judge, [image])[0] for image in pixels]
        apart = [
            np.abs(images[slots][key].astype(int) - image.astype(int)).max()
            for key, image in images[1].items()
            for slots in (5, 16)
        ]
        moved = float(np.abs(np.subtract(together, alone)).max())
        rows.append((runtime, len(apart), int(max(apart)), moved))
    show(
        "Alone, and in batches of 5 and 16",
        ["denoiser", "images compared", "grey levels apart, at most", "scores apart, at most"],
        [[name, str(count), str(levels), f"{moved:.1e}"] for name, count, levels, moved in rows],
    )
    save("tolerance", {"rows": rows})


if __name__ == "__main__":
    main()
