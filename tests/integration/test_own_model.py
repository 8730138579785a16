"""A model of one's own, as docs/models.md leads: import, serve, label, train, promote, draw."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.encode import from_png
from tests.integration.conftest import ADMIN_KEY, Service, start, stop, wait_for
from tests.pipelines import tiny_class, tiny_ldm

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

IMAGES = "/v1/images/generations"
PAGES = 4


@pytest.fixture(params=["class", "ldm"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """`winnow serve` with the configuration that the import has written."""
    source, out = tmp_path / "pipeline", tmp_path / "own"
    if request.param == "class":
        tiny_class(source)
    else:
        tiny_ldm(source, vq=True)
    answer = CliRunner().invoke(
        app, ["bundle", "import", str(source), "--out", str(out), "--steps", "6"]
    )
    assert answer.exit_code == 0, answer.output
    running = start(tmp_path / "own.yaml", tmp_path / "log")
    yield running
    stop(running)


def _brightness(png: str) -> float:
    return float(from_png(base64.b64decode(png)).mean())


def _label(http: httpx.Client) -> None:
    """Call the darker half malign."""
    made = http.post("/v1/datasets", json={"name": "dark", "question": "Is it dark?"})
    assert made.status_code == 201, made.text
    limit = None
    for _ in range(PAGES):
        answer = http.post("/v1/datasets/dark/batches", json={"size": 25, "strategy": "random"})
        assert answer.status_code == 200, answer.text
        images = answer.json()["images"]
        bright = {one["id"]: _brightness(one["b64_json"]) for one in images}
        limit = limit or sorted(bright.values())[len(bright) // 2]
        labels = [
            {"image_id": id_, "label": "malign" if b < limit else "benign", "elapsed_ms": 400}
            for id_, b in bright.items()
        ]
        assert http.post("/v1/datasets/dark/labels", json={"labels": labels}).status_code == 200


def _trained(http: httpx.Client) -> dict[str, Any]:
    queued = http.post("/v1/rewards", json={"dataset": "dark", "target": 0.1}).json()

    def ended() -> bool:
        found = http.get(f"/v1/rewards/{queued['id']}").json()
        assert found["status"] not in ("failed", "cancelled"), found["error"]
        return bool(found["status"] == "ready")

    wait_for(ended, 240)
    reward: dict[str, Any] = http.get(f"/v1/rewards/{queued['id']}").json()
    assert reward["recipe"]["policy"] == "screened"
    return reward


def test_from_a_pipeline_to_a_censored_image(own: Service) -> None:
    http = own.client
    refusal = http.post(IMAGES, json={})
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (409, "policy_not_ready")
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    drawn = http.post(IMAGES, json={"policy": "none", "n": 4, "seed": 1}, headers=admin)
    assert drawn.status_code == 200, drawn.text
    _label(http)
    reward = _trained(http)
    body = {"name": "screened", "based_on": "screened", "reward": reward["id"]}
    made = http.post("/v1/policies", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["uncalibrated"] == []
    promoted = http.post("/v1/policies/screened/promote", json={"version": 2})
    assert promoted.status_code == 200, promoted.text
    answer = http.post(
        IMAGES, json={"n": 16, "seed": 1000, "censor": {"on_filtered": "never"}}
    ).json()
    assert answer["policy"]["version"] == 2
    # Its pictures are noise, of which a hundred labels teach little: what counts is who decides.
    for one in answer["data"]:
        found = one["content_filter_results"]["screened"]
        assert found["filtered"] == (found["benign_score"] < found["threshold"])
        assert found["filtered"] == (one["b64_json"] is None)
    assert any(one["b64_json"] for one in answer["data"])
    judge = made.json()["networks"]["judge"]
    assert answer["policy"]["judge"] == judge
