"""Networks that come while the engine runs, with the shipped bundle's real ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundles import bundle as bundles
from models.bundles.bundle import Bundle
from models.bundles.parts import PARTS, Stage
from models.rewards.ensemble import Ensemble
from service.config import BackboneSettings
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.engine.loop import EngineLoop
from service.errors import BackendUnavailable
from service.policies.weights import Weights
from service.ports import DrawKey, DrawResult, Find, SamplingPlan
from service.store.blobs import Blobs
from tests.engines import make_plan

STEPS = 6


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return bundles.load("mnist-sevens")


def _engine(
    shipped: Bundle, weights: Weights, empty: bool = True, find: Find | None = None
) -> Engine:
    """An engine that forward guidance may use too; `empty`, it knows no network of a reward."""
    settings = BackboneSettings(max_batch=8, forward_guidance=True)
    if empty:
        bare = shipped.manifest.model_copy(update={"rewards": {}})
        shipped = Bundle(shipped.folder, bare)
    return load_engine(shipped, settings, find=find or weights.find)


@pytest.fixture
def weights(shipped: Bundle, tmp_path: Path) -> Weights:
    return Weights(shipped, str(tmp_path / "blobs"))


@pytest.fixture
def loop(shipped: Bundle, weights: Weights) -> Iterator[EngineLoop]:
    opened = EngineLoop(_engine(shipped, weights), 64)
    yield opened
    opened.close()


def _plans(shipped: Bundle) -> list[SamplingPlan]:
    """One plan for each way in which a network of a reward is used."""
    backbone = shipped.backbone_sha256("onnx")
    reward = shipped.manifest.rewards["no-crossbar"]
    shared = {"backbone": backbone, "num_inference_steps": STEPS}
    asks: dict[Stage, dict[str, Any]] = {
        Stage.STEERS: {"censor_scale": 1.0},
        Stage.BACKWARD: {"backward_steps": 2},
        Stage.PROBES: {"probes": (0.5,), "probe_thresholds": (0.0,)},
    }
    return [
        make_plan(**{part: shipped.sha256(reward.parts[kind.file])}, **asks[kind.stage], **shared)
        for part, kind in PARTS.items()
        if kind.opens is not None
    ]


async def _draw(loop: EngineLoop, plan: SamplingPlan) -> DrawResult:
    async with aclosing(loop.draw(plan, [DrawKey(0, 5, 0)], 60.0)) as groups:
        return (await anext(groups))[0]


def test_what_came_later_draws_as_what_was_there_from_the_start(
    shipped: Bundle, weights: Weights, loop: EngineLoop
) -> None:
    whole = EngineLoop(_engine(shipped, weights, empty=False), 64)
    try:
        for plan in _plans(shipped):
            before, after = asyncio.run(_draw(whole, plan)), asyncio.run(_draw(loop, plan))
            assert before.pixels is not None
            assert after.pixels is not None
            assert np.array_equal(before.pixels, after.pixels)
            assert before.probe_scores == after.probe_scores
    finally:
        whole.close()


def test_networks_come_while_draws_run_and_disturb_none(shipped: Bundle, loop: EngineLoop) -> None:
    plans = _plans(shipped)
    alone = [asyncio.run(_draw(loop, plan)) for plan in plans[:2]]

    async def together() -> list[DrawResult]:
        running = [asyncio.ensure_future(_draw(loop, plan)) for plan in plans[:2] * 3]
        await asyncio.gather(*(_draw(loop, plan) for plan in plans[2:]))
        return await asyncio.gather(*running)

    for number, result in enumerate(asyncio.run(together())):
        expected = alone[number % 2]
        assert result.pixels is not None
        assert expected.pixels is not None
        assert np.array_equal(result.pixels, expected.pixels)


def test_one_network_asked_for_by_many_is_loaded_once(shipped: Bundle, weights: Weights) -> None:
    found = []

    def find(name: str, suffix: str) -> Path:
        found.append(name)
        return weights.find(name, suffix)

    engine = _engine(shipped, weights, find=find)
    assert engine.loader is not None
    name = shipped.reward_sha256("no-crossbar")["guide"]
    load = engine.loader.load
    threads = [threading.Thread(target=load, args=({"guide": name},)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [name]
    assert engine.networks.names == [("guide", name)]


def test_a_judge_is_none_of_its_business(loop: EngineLoop) -> None:
    asyncio.run(loop.load({"judge": "sha256:" + "0" * 64}))


def _ensemble(shipped: Bundle, part: str, tmp_path: Path, spoil: bool = False) -> bytes:
    """A reward's network in other bytes, perhaps with a weight that is no number."""
    file = shipped.manifest.rewards["no-crossbar"].parts[part]
    ensemble = Ensemble.load(shipped.path(file))
    first = next(iter(ensemble.network.parameters()))
    with torch.no_grad():
        first.mul_(float("nan") if spoil else 1.01)
    ensemble.save(tmp_path / "fresh.safetensors")
    return (tmp_path / "fresh.safetensors").read_bytes()


@pytest.mark.parametrize("part", ["guide", "clean_guide"])
def test_a_trained_network_comes_from_the_blobs(
    shipped: Bundle, loop: EngineLoop, tmp_path: Path, part: str
) -> None:
    name = Blobs(str(tmp_path / "blobs")).put(_ensemble(shipped, part, tmp_path))
    kind = {"guide": {"censor_scale": 1.0}, "clean_guide": {"backward_steps": 1}}[part]
    shared = {"backbone": shipped.backbone_sha256("onnx"), "num_inference_steps": STEPS}
    result = asyncio.run(_draw(loop, make_plan(**{part: name}, **shared, **kind)))
    assert result.pixels is not None


def test_what_cannot_be_verified_or_tried_is_refused_and_the_engine_goes_on(
    shipped: Bundle, weights: Weights, tmp_path: Path
) -> None:
    engine = _engine(shipped, weights)
    loop = EngineLoop(engine, 64)
    blobs = Blobs(str(tmp_path / "blobs"))
    reward = shipped.reward_sha256("no-crossbar")
    good = blobs.put(_ensemble(shipped, "guide", tmp_path))
    changed = tmp_path / "blobs" / good[7:9] / good[7:]
    changed.write_bytes(changed.read_bytes() + b"!")
    refusals = {
        ("guide", "sha256:" + "0" * 64): "is not in the store",
        ("guide", "../../etc/passwd"): "is no name of a blob",
        ("guide", good): "it was changed",
        ("guide", blobs.put(b"no network at all")): "cannot be loaded",
        ("distilled", blobs.put(b"no graph at all")): "cannot be loaded",
        ("guide", blobs.put(_ensemble(shipped, "guide", tmp_path, spoil=True))): "not finite",
        # One that looks at clean images cannot steer at a timestep, nor the other way round.
        ("guide", reward["clean_guide"]): "cannot be loaded",
        ("clean_guide", reward["guide"]): "cannot be loaded",
        ("distilled", reward["probe"]): "cannot be loaded",
        ("probe", reward["judge"]): "cannot be loaded",
    }
    for (part, name), words in refusals.items():
        with pytest.raises(BackendUnavailable, match=words):
            asyncio.run(loop.load({part: name}))
        assert not engine.networks.names
    with pytest.raises(BackendUnavailable, match="knows no part 'seer'"):
        asyncio.run(loop.load({"seer": good}))
    loop.check_health()
    assert asyncio.run(_draw(loop, _plans(shipped)[0])).pixels is not None
    loop.close()


def test_forward_guidance_needs_the_denoiser_in_torch(shipped: Bundle, weights: Weights) -> None:
    engine = load_engine(shipped, BackboneSettings(max_batch=1), find=weights.find)
    assert engine.loader is not None
    name = shipped.reward_sha256("no-crossbar")["clean_guide"]
    with pytest.raises(BackendUnavailable, match="forward_guidance: true"):
        engine.loader.load({"forward": name})


def test_threads_that_fetch_at_once_get_what_each_asked_for(
    bundle_folder: Path, tmp_path: Path
) -> None:
    blobs = Blobs(str(tmp_path / "blobs"))
    names = [blobs.put(bytes([number]) * 99) for number in range(8)]
    for _ in range(20):
        weights = Weights(bundles.load(str(bundle_folder)), str(tmp_path / "blobs"))
        start = threading.Barrier(len(names))

        def find(name: str, weights: Weights = weights, start: threading.Barrier = start) -> bytes:
            start.wait()
            return weights.find(name, ".bin").read_bytes()

        with ThreadPoolExecutor(len(names)) as pool:
            found = list(pool.map(find, names))
        assert found == [bytes([number]) * 99 for number in range(8)]


def test_a_bundle_that_changes_under_the_service_is_not_believed(
    bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = bundles.load(str(bundle_folder))
    file = bundle.manifest.rewards["bright"].parts["guide"]
    weights = Weights(bundle, str(tmp_path / "blobs"))
    assert weights.find(bundle.sha256(file), ".safetensors") == bundle.path(file)
    bundle.path(file).write_bytes(b"something else")
    with pytest.raises(Exception, match="was changed since"):
        weights.find(bundle.sha256(file), ".safetensors")
