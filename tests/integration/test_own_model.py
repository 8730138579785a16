"""Models of one's own, as docs/models.md leads: import, serve, label, train, promote, draw.

Two in one service: one that takes a class, and one that draws latents.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from service.cli.main import app
from service.images.encode import from_png
from tests.integration import endings
from tests.integration.conftest import ADMIN, Service, start, stop
from tests.pipelines import tiny_class, tiny_ldm
from tests.processes import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

IMAGES = "/v1/images/generations"
MODELS = ("class", "ldm")
PAGES = 4


def _imported(model: str, folder: Path) -> dict[str, Any]:
    """The configuration that the import writes, and its policies named after the model."""
    source, out = folder / f"{model}-pipeline", folder / model
    if model == "class":
        tiny_class(source)
    else:
        tiny_ldm(source, vq=True)
    answer = CliRunner().invoke(
        app, ["bundle", "import", str(source), "--out", str(out), "--steps", "6"]
    )
    assert answer.exit_code == 0, answer.output
    file: dict[str, Any] = yaml.safe_load((folder / f"{model}.yaml").read_text())
    args = file["applications"][0]["args"]
    args["models"][model]["backbone"]["replicas"] = {"ray_actor_options": {"num_cpus": 0.1}}
    args["policies"] = {f"{name}-{model}": policy for name, policy in args["policies"].items()}
    args["default_policy"] = f"screened-{model}"
    return file


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`winnow serve` with both models."""
    folder = tmp_path_factory.mktemp("own")
    file, other = (_imported(model, folder) for model in MODELS)
    for part in ("models", "policies"):
        file["applications"][0]["args"][part] |= other["applications"][0]["args"][part]
    config = folder / "both.yaml"
    config.write_text(yaml.safe_dump(file))
    running = start(config, folder / "log")
    yield running
    stop(running)


def _brightness(png: str) -> float:
    return float(from_png(base64.b64decode(png)).mean())


def _label(http: httpx.Client, model: str) -> None:
    """Call the darker half malign."""
    body = {"name": model, "model": model, "question": "Is it dark?"}
    made = http.post("/v1/datasets", json=body)
    assert made.status_code == 201, made.text
    limit = None
    for _ in range(PAGES):
        body = {"size": 25, "strategy": "random"}
        answer = http.post(f"/v1/datasets/{model}/batches", json=body)
        assert answer.status_code == 200, answer.text
        images = answer.json()["images"]
        bright = {one["id"]: _brightness(one["b64_json"]) for one in images}
        limit = limit or sorted(bright.values())[len(bright) // 2]
        labels = [
            {"image_id": id_, "label": "malign" if b < limit else "benign", "elapsed_ms": 400}
            for id_, b in bright.items()
        ]
        said = http.post(f"/v1/datasets/{model}/labels", json={"labels": labels})
        assert said.status_code == 200, said.text


def _trained(http: httpx.Client, model: str) -> dict[str, Any]:
    queued = http.post("/v1/rewards", json={"dataset": model, "target": 0.1}).json()

    def ended() -> bool:
        found = http.get(f"/v1/rewards/{queued['id']}").json()
        assert found["status"] not in ("failed", "cancelled"), found["error"]
        return bool(found["status"] == "ready")

    wait_for(ended, 240)
    reward: dict[str, Any] = http.get(f"/v1/rewards/{queued['id']}").json()
    assert reward["recipe"]["policy"] == f"screened-{model}"
    return reward


@pytest.mark.parametrize("model", MODELS)
def test_from_a_pipeline_to_a_censored_image(own: Service, model: str) -> None:
    http, screened = own.client, f"screened-{model}"
    refusal = http.post(IMAGES, json={"policy": screened})
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (409, "policy_not_ready")
    uncensored = {"policy": f"none-{model}", "n": 4, "seed": 1}
    drawn = http.post(IMAGES, json=uncensored, headers=ADMIN)
    assert drawn.status_code == 200, drawn.text
    _label(http, model)
    reward = _trained(http, model)
    body = {"name": screened, "based_on": screened, "reward": reward["id"]}
    made = http.post("/v1/policies", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["uncalibrated"] == []
    promoted = http.post(f"/v1/policies/{screened}/promote", json={"version": 2})
    assert promoted.status_code == 200, promoted.text
    body = {"policy": screened, "n": 16, "seed": 1000, "censor": {"on_filtered": "never"}}
    answer = http.post(IMAGES, json=body).json()
    assert answer["policy"]["version"] == 2
    # Its pictures are noise, of which a hundred labels teach little: what counts is who decides.
    for one in answer["data"]:
        found = one["content_filter_results"][screened]
        assert found["filtered"] == (found["benign_score"] < found["threshold"])
        assert found["filtered"] == (one["b64_json"] is None)
    assert any(one["b64_json"] for one in answer["data"])
    judge = made.json()["networks"]["judge"]
    assert answer["policy"]["judge"] == judge


def test_each_model_answers_for_itself(own: Service) -> None:
    """At once, and neither by the other's policy, backbone or judge."""
    listed = own.client.get("/v1/models").json()["data"]
    assert {one["id"] for one in listed} == set(MODELS)
    wrong = {"model": "class", "policy": "screened-ldm"}
    assert own.client.post(IMAGES, json=wrong).json()["error"]["param"] == "policy"
    drawn: dict[str, set[str]] = {model: set() for model in MODELS}
    for seed in range(4):
        for model in MODELS:
            body = {"model": model, "policy": f"none-{model}", "seed": seed}
            answer = own.client.post(IMAGES, json=body, headers=ADMIN).json()
            assert answer["model"] == model
            drawn[model].add(answer["data"][0]["b64_json"])
    assert not drawn["class"] & drawn["ldm"]
    for deployment in ("Backbone", "RewardModel"):
        assert len(own.replicas(deployment)) == 2


def test_killed_supervisor_and_server_leave_no_process(own: Service) -> None:
    endings.killed(own, "supervisor", "server")
