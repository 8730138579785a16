from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest

from models.bundles.bundle import Bundle
from models.diffusion.condition import Condition
from service.config import Settings
from service.generation.record import Record, packages, redacted_plan, row, sha256, versions
from service.policies.seeding import configured_policies
from service.ports import FinishReason, Verdict
from tests.bundles import settings
from tests.plans import JUDGED
from tests.records import PIXELS, make_decision, make_outcome, make_record


def test_a_record_comes_back_from_the_store_as_it_was() -> None:
    record = make_record()
    stored = json.loads(json.dumps(dict(row(record).document), allow_nan=False))
    again = Record.model_validate(stored)
    assert again.plan == record.plan, "a replay draws by this plan"
    assert again.versions == record.versions
    assert row(again) == row(record)


def test_every_settled_draw_stands_under_its_image() -> None:
    delivered, blocked = make_record().images
    assert [(d.draw, d.verdict.value, d.score) for d in delivered.judged] == [
        (0, "abandoned", None),
        (1, "accepted", 0.9),
    ]
    assert [(d.draw, d.verdict.value) for d in blocked.judged] == [(0, "rejected")]


def test_a_delivered_image_is_named_by_its_bytes_and_a_blocked_one_is_not() -> None:
    delivered, blocked = make_record().images
    assert delivered.pixels_sha256 == sha256(PIXELS)
    assert delivered.pixels_sha256 != sha256(PIXELS[::-1]), "by its order too"
    assert blocked.pixels_sha256 is None


def test_a_score_that_is_no_number_is_null() -> None:
    (abandoned, _), _ = (image["judged"] for image in row(make_record()).document["images"])
    assert abandoned["probe_scores"] == [0.1, None]


def test_what_was_accepted_but_held_back_does_not_read_as_delivered() -> None:
    outcome = make_outcome()
    outcome.withhold()
    record = make_decision().record("censor_unavailable", 0.1, outcome)
    accepted, blocked = record.images
    assert (accepted.finish_reason, accepted.pixels_sha256) == (FinishReason.CANCELLED, None)
    assert accepted.judged[-1].verdict is Verdict.ACCEPTED
    assert blocked.finish_reason is FinishReason.CONTENT_FILTERED
    assert record.usage == {"delivered": 0, "draws": 3, "nfe": 24}


def test_an_older_record_of_a_fault_without_images_is_still_read() -> None:
    document = make_record().model_dump(mode="json") | {"images": [], "usage": {}}
    assert Record.model_validate(document).images == ()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    "condition", [Condition(), Condition("a 7"), Condition("", "a bar"), Condition("a 7", "a bar")]
)
def test_prompts_are_kept_only_where_wanted(condition: Condition, keep: bool) -> None:
    condition = replace(condition, guidance_scale=4.0)
    plan, prompt = redacted_plan(replace(JUDGED, condition=condition), keep)
    if keep or condition == Condition(guidance_scale=4.0):
        assert (plan.condition, prompt) == (condition, condition.prompt)
    else:
        assert prompt is None, "an empty prompt would say that there was none"
        assert plan == replace(JUDGED, condition=Condition(guidance_scale=4.0))


def test_ids_differ_when_a_request_id_is_repeated() -> None:
    assert make_decision().id != make_decision().id


def test_versions_name_all_weights_by_hash(bundle: Bundle) -> None:
    config = Settings.model_validate(settings(str(bundle.folder)))
    policy = configured_policies(config, {"tiny": bundle})["bright"]
    found = versions(config.models["tiny"], bundle.manifest, policy.sampling(50))
    assert found.sampling.backbone.weights == bundle.backbone_sha256("onnx")
    assert found.sampling.backbone.schedule == bundle.schedule_sha256
    assert found.sampling.parts == {"judge": policy.judge}
    assert set(found.packages) == {"winnow-serve", "torch", "onnxruntime", "numpy", "diffusers"}


def test_onnx_runtime_with_cuda_is_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return f"1 of {name}"

    monkeypatch.setattr(metadata, "version", version)
    found = packages.__wrapped__()
    assert found["onnxruntime"] == "1 of onnxruntime-gpu"
    assert found["torch"] == "1 of torch"


def test_store_and_records_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, service.generation.record, service.store.recorder; "
        "sys.exit(bool({'torch', 'ray', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
