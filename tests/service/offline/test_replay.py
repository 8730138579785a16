"""Images made again with the shipped bundle: real weights, the real engine, a real store."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from models.bundles import bundle as bundles
from models.bundles.bundle import Bundle
from service.cli.main import app
from service.config import Settings, blobs_url
from service.config.serve_file import read
from service.generation.record import Decision, Record, Request, row, versions
from service.offline import replay
from service.offline.replay import CannotReplay
from service.policies.policy import Overrides, resolve, sampling_of
from service.serving.in_process import InProcessService
from service.store.blobs import Blobs
from tests.stores import open_store

CONFIG = Path(__file__).parents[3] / "deploy/local.yaml"
SEED = 200


@pytest.fixture(scope="module")
def settings() -> Settings:
    return read(CONFIG).settings


@pytest.fixture(scope="module")
def loaded(settings: Settings) -> dict[str, Bundle]:
    return {name: bundles.load(model.bundle) for name, model in settings.models.items()}


@pytest.fixture(scope="module")
def records(settings: Settings, loaded: dict[str, Bundle]) -> dict[str, Record]:
    """What the service would record: images delivered plainly and guided, and blocked ones."""
    made = {}
    wishes = {
        "no-crossbar": ("no-crossbar", Overrides(num_inference_steps=20)),
        "guided": ("no-crossbar-guided", Overrides()),
        "blocked": ("no-crossbar", Overrides(threshold=1.0, max_draws=2, num_inference_steps=20)),
    }
    with InProcessService(settings, "mnist-sevens") as service:
        for name, (policy_name, overrides) in wishes.items():
            policy = service.policies[policy_name]
            plan = resolve(policy, overrides, SEED, admin=False)
            outcome = asyncio.run(service.sampling_loop.generate(plan, 3, 120.0))
            model = plan.model
            asked = Request(n=3, deadline_s=120.0, on_filtered="never", prompt="")
            ran = versions(
                settings.models[model], loaded[model].manifest, sampling_of(plan, policy.backbone)
            )
            made[name] = Decision("r", "k", asked, plan, ran).record("ok", 1.0, outcome)
    return made


@pytest.fixture
def url(tmp_path: Path) -> str:
    address = f"sqlite:///{tmp_path}/decisions.sqlite"
    open_store(address).close()
    return address


def _replay(url: str, record: Record, *options: str) -> Result:
    """`winnow replay` of a record that the store holds."""
    store = open_store(url)
    store.decisions.insert([row(record)])
    store.close()
    arguments = ["replay", record.id, "--config", str(CONFIG), "--url", url, *options]
    answer = CliRunner().invoke(app, arguments)
    assert isinstance(answer.exception, SystemExit | None), "a mistake is a sentence"
    return answer


def _changed(record: Record, **parts: Any) -> Record:
    return record.model_copy(update=parts)


@pytest.mark.parametrize("name", ["no-crossbar", "guided"])
def test_every_image_is_made_again_to_the_byte(
    records: dict[str, Record], url: str, tmp_path: Path, name: str
) -> None:
    answer = _replay(url, records[name], "--out", str(tmp_path / "out"))
    assert answer.exit_code == 0, answer.output
    assert answer.output.count(": identical to what was delivered") == 3
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"image-{index}.png" for index in range(3)]
    assert {Image.open(path).size for path in paths} == {(28, 28)}


def test_the_accepted_draw_is_made_not_the_first(
    settings: Settings, records: dict[str, Record]
) -> None:
    record = records["no-crossbar"]
    last = {image.index: image.judged[-1].draw for image in record.images}
    draws = replay.chosen(record, rejected=False)
    assert {image.index: draw for image, draw in draws} == last


def test_an_image_of_other_bytes_is_not_identical(records: dict[str, Record], url: str) -> None:
    record = records["no-crossbar"]
    first = record.images[0].model_copy(update={"pixels_sha256": "sha256:" + "0" * 64})
    answer = _replay(url, _changed(record, images=(first, *record.images[1:])))
    assert answer.exit_code == 1
    assert "image 0" in answer.output
    assert answer.output.count("NOT identical") == 1
    assert answer.output.count(": identical to") == 2


def test_what_was_held_back_is_made_again_only_when_asked_for(
    records: dict[str, Record], url: str, tmp_path: Path
) -> None:
    blocked = records["blocked"]
    refused = _replay(url, blocked)
    assert refused.exit_code == 1
    assert "--rejected" in refused.output
    arguments = ["replay", blocked.id, "--config", str(CONFIG), "--url", url, "--rejected"]
    answer = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert answer.exit_code == 0, answer.output
    assert answer.output.count("only the score can be compared") == 3
    assert answer.output.count("draw 1)") == 3, "the last one"
    assert (tmp_path / "out/image-2-held-back.png").exists()


def _with_packages(record: Record, packages: dict[str, str]) -> Record:
    return _changed(record, versions=record.versions.model_copy(update={"packages": packages}))


@pytest.mark.parametrize("name", ["torch", "numpy", "diffusers"])
def test_other_packages_are_named(records: dict[str, Record], url: str, name: str) -> None:
    record = records["no-crossbar"]
    then = record.versions.packages | {name: "1.0"}
    assert f"{name} 1.0 then" in _replay(url, _with_packages(record, then)).output


CANNOT = [
    ({"request": {"prompt": None}}, "the prompt was not kept"),
    ({"versions": {"runtime": "torch"}}, "runtime torch, and the configuration says onnx"),
    ({"plan": {"model": "gone"}}, "no model 'gone'"),
]


@pytest.mark.parametrize(("change", "reason"), CANNOT, ids=[reason for _, reason in CANNOT])
def test_it_says_in_one_line_why_it_cannot(
    records: dict[str, Record], url: str, change: dict[str, Any], reason: str
) -> None:
    document = records["no-crossbar"].model_dump()
    for part, fields in change.items():
        document[part] |= fields
    answer = _replay(url, Record.model_validate(document))
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1), answer.output
    assert reason in answer.output


def test_the_setting_of_another_dtype_is_named(
    records: dict[str, Record], settings: Settings, loaded: dict[str, Bundle]
) -> None:
    record = records["no-crossbar"]
    sampling = record.versions.sampling
    half = dataclasses.replace(
        sampling, backbone=dataclasses.replace(sampling.backbone, dtype="float16")
    )
    drawn = _changed(record, versions=record.versions.model_copy(update={"sampling": half}))
    with pytest.raises(CannotReplay, match=r"float16.* set models\.mnist-sevens\.backbone\.dtype"):
        replay.check(drawn, settings, loaded)


def test_a_network_that_nobody_has_any_more_is_named(
    records: dict[str, Record], settings: Settings, loaded: dict[str, Bundle]
) -> None:
    record = records["no-crossbar"]
    parts = {**record.plan.parts, "judge": "sha256:other"}
    sampling = dataclasses.replace(record.versions.sampling, parts=parts)
    gone = _changed(
        record,
        plan=dataclasses.replace(record.plan, parts=parts),
        versions=record.versions.model_copy(update={"sampling": sampling}),
    )
    with pytest.raises(CannotReplay, match="the weights have changed: judge of"):
        replay.check(gone, settings, loaded)


def _another(shipped: Path, folder: Path) -> bytes:
    """The shipped judge in other bytes."""
    graph = onnx.load(shipped)
    graph.producer_name = "another"
    onnx.save(graph, folder / "judge.onnx")
    return (folder / "judge.onnx").read_bytes()


def test_a_decision_under_a_trained_reward_takes_its_networks_from_the_blobs(
    settings: Settings,
    loaded: dict[str, Bundle],
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    blobs_at = blobs_url(settings.store, os.environ)
    bundle, blobs = loaded["mnist-sevens"], Blobs(blobs_at)
    judge = blobs.put(_another(bundle.path("judges/no-crossbar.onnx"), tmp_path))
    with InProcessService(settings, "mnist-sevens", blobs_url=blobs_at) as service:
        policy = service.policies["no-crossbar"]
        parts = {**policy.parts, "judge": judge}
        policy = dataclasses.replace(policy, parts=parts, reward="rw_1")
        plan = resolve(policy, Overrides(num_inference_steps=20), SEED, admin=False)
        outcome = asyncio.run(service.sampling_loop.generate(plan, 1, 120.0))
    asked = Request(n=1, deadline_s=120.0, on_filtered="never", prompt="")
    ran = versions(
        settings.models["mnist-sevens"], bundle.manifest, sampling_of(plan, policy.backbone)
    )
    record = Decision("r", "k", asked, plan, ran).record("ok", 1.0, outcome)
    answer = _replay(url, record)
    assert answer.exit_code == 0, answer.output
    assert "identical to what was delivered" in answer.output

    blobs.delete(judge)
    again = CliRunner().invoke(app, ["replay", record.id, "--config", str(CONFIG), "--url", url])
    assert (again.exit_code, again.output.count("\n")) == (1, 1), again.output
    assert "judge of bundle" in again.output
    assert "the store's blobs do not hold them" in again.output


def test_an_unknown_decision_is_one_line(url: str) -> None:
    arguments = ["replay", "img_unknown", "--config", str(CONFIG), "--url", url]
    answer = CliRunner().invoke(app, arguments)
    assert (answer.exit_code, answer.output.count("\n")) == (1, 1)
