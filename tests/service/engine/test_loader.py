"""Networks that come while the engine runs, with the shipped bundle's real ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import torch

from models import bundle as bundles
from models.bundle import Bundle
from models.method import Guidance
from models.rewards.ensemble import Ensemble
from service.config import BackboneSettings
from service.engine.engine import Engine
from service.engine.load import load_engine
from service.engine.loader import Loader
from service.engine.loop import EngineLoop
from service.engine.runner import Runner
from service.errors import BackendUnavailable
from service.ports import DrawKey, DrawResult, SamplingPlan
from service.store.blobs import Blobs
from service.weights import Weights
from tests.engines import make_plan

STEPS = 6


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return bundles.load("mnist-sevens")


def _engine(shipped: Bundle, weights: Weights, empty: bool = True) -> Engine:
    """An engine that forward guidance may use too; `empty`, it knows no network of a reward."""
    settings = BackboneSettings(max_batch=8, forward_guidance=True)
    engine = load_engine(shipped, settings, find=weights.find)
    if empty:
        full, loader = engine._runner, engine.loader
        assert loader is not None
        runner = Runner(full.backbone, full._denoiser, full._schedule, {})
        engine._runner = runner
        engine.loader = Loader(runner, loader._networks, loader._find)
    return engine


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
    assert reward.distilled is not None
    assert reward.probe is not None
    guides: dict[Guidance, str] = {
        "time": reward.guide, "distilled": reward.distilled, "forward": reward.clean_guide,
    }  # fmt: skip
    shared = {"backbone": backbone, "num_inference_steps": STEPS}
    clean, probe = shipped.sha256(reward.clean_guide), shipped.sha256(reward.probe)
    return [
        *(
            make_plan(guide=shipped.sha256(file), guidance=kind, censor_scale=1.0, **shared)
            for kind, file in guides.items()
        ),
        make_plan(clean_guide=clean, backward_steps=2, **shared),
        make_plan(probe=probe, probes=(0.5,), probe_thresholds=(0.0,), **shared),
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
    places = list(loop._engine._runner.guides)

    async def together() -> list[DrawResult]:
        running = [asyncio.ensure_future(_draw(loop, plan)) for plan in plans[:2] * 3]
        await asyncio.gather(*(_draw(loop, plan) for plan in plans[2:]))
        return await asyncio.gather(*running)

    for number, result in enumerate(asyncio.run(together())):
        expected = alone[number % 2]
        assert result.pixels is not None
        assert expected.pixels is not None
        assert np.array_equal(result.pixels, expected.pixels)
    assert list(loop._engine._runner.guides)[: len(places)] == places


def test_one_network_asked_for_by_many_is_loaded_once(
    shipped: Bundle, loop: EngineLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loop._engine.loader
    assert loader is not None
    found, find = [], loader._find
    monkeypatch.setattr(
        loader, "_find", lambda name, suffix: (found.append(name), find(name, suffix))[1]
    )
    name = shipped.sha256(shipped.manifest.rewards["no-crossbar"].guide)
    threads = [threading.Thread(target=loader.load, args=({"guide": name},)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [name]
    assert len(loop._engine._runner._guides) == 1


def test_a_judge_is_none_of_its_business(loop: EngineLoop) -> None:
    asyncio.run(loop.load({"judge": "sha256:" + "0" * 64}))


def _ensemble(shipped: Bundle, part: str, tmp_path: Path, spoil: bool = False) -> bytes:
    """A reward's network in other bytes, perhaps with a weight that is no number."""
    file = getattr(shipped.manifest.rewards["no-crossbar"], part)
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
    shipped: Bundle, loop: EngineLoop, tmp_path: Path
) -> None:
    blobs = Blobs(str(tmp_path / "blobs"))
    reward = shipped.manifest.rewards["no-crossbar"]
    good = blobs.put(_ensemble(shipped, "guide", tmp_path))
    changed = tmp_path / "blobs" / good[7:9] / good[7:]
    changed.write_bytes(changed.read_bytes() + b"!")
    assert reward.probe is not None
    refusals = {
        ("guide", "sha256:" + "0" * 64): "is not in the store",
        ("guide", "../../etc/passwd"): "is no name of a blob",
        ("guide", good): "it was changed",
        ("guide", blobs.put(b"no network at all")): "cannot be loaded",
        ("distilled", blobs.put(b"no graph at all")): "cannot be loaded",
        ("guide", blobs.put(_ensemble(shipped, "guide", tmp_path, spoil=True))): "not finite",
        # One that looks at clean images cannot steer at a timestep, nor the other way round.
        ("guide", shipped.sha256(reward.clean_guide)): "cannot be loaded",
        ("clean_guide", shipped.sha256(reward.guide)): "cannot be loaded",
        ("distilled", shipped.sha256(reward.probe)): "cannot be loaded",
        ("probe", shipped.sha256(reward.judge)): "cannot be loaded",
    }
    for (part, name), words in refusals.items():
        with pytest.raises(BackendUnavailable, match=words):
            asyncio.run(loop.load({part: name}))
        assert not loop._engine._runner.guides
        assert not loop._engine._runner.clean_guides
        assert not loop._engine._runner.probes
    loop.check_health()
    assert asyncio.run(_draw(loop, _plans(shipped)[0])).pixels is not None


def test_forward_guidance_needs_the_denoiser_in_torch(shipped: Bundle, weights: Weights) -> None:
    engine = load_engine(shipped, BackboneSettings(max_batch=1), find=weights.find)
    assert engine.loader is not None
    name = shipped.sha256(shipped.manifest.rewards["no-crossbar"].clean_guide)
    with pytest.raises(BackendUnavailable, match="forward_guidance: true"):
        engine.loader.load({"forward": name})


def test_a_bundle_that_changes_under_the_service_is_not_believed(
    bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = bundles.load(str(bundle_folder))
    file = bundle.manifest.rewards["bright"].guide
    weights = Weights(bundle, str(tmp_path / "blobs"))
    assert weights.find(bundle.sha256(file), ".safetensors") == bundle.path(file)
    bundle.path(file).write_bytes(b"something else")
    with pytest.raises(Exception, match="was changed since"):
        weights.find(bundle.sha256(file), ".safetensors")
