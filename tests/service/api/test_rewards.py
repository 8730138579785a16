"""Training over REST: the queue is the store, and whoever works on it is somebody else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from models.bundles.bundle import Bundle
from service.errors import InvalidValue
from service.labelling.training_order import TrainingOrders
from tests.feedback import run_next, take
from tests.service.api.conftest import client, refused
from tests.service.api.server import Served, serve


@pytest.fixture
def labelled(labeller: httpx.Client, dataset: str) -> str:
    """A dataset with just enough labels."""
    _label(labeller, dataset)
    return dataset


def _label(http: httpx.Client, dataset: str) -> None:
    url = f"/v1/datasets/{dataset}"
    images = http.post(f"{url}/batches", json={"size": 10}).json()["images"]
    labels = [*["benign"] * 5, *["malign"] * 4, "unsure"]
    said = [
        {"image_id": image["id"], "label": label, "elapsed_ms": 300}
        for image, label in zip(images, labels, strict=True)
    ]
    assert http.post(f"{url}/labels", json={"labels": said}).status_code == 200


def _train(http: httpx.Client, dataset: str, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/rewards", json={"dataset": dataset} | body)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(autouse=True)
def queue_ends(server: Served) -> Iterator[None]:
    """Afterwards nothing waits any more."""
    yield
    while (left := server.store.jobs.take("training", "a test")) is not None:
        server.store.jobs.end(left, "failed", "the test is over")


def test_a_training_is_accepted_watched_and_becomes_a_reward(
    server: Served, labeller: httpx.Client, labelled: str
) -> None:
    queued = _train(labeller, labelled, target=0.02)
    assert (queued["status"], queued["progress"], queued["parent"]) == ("queued", 0.0, None)
    assert queued["recipe"] == {
        "policy": "bright", "target": 0.02, "guide": False, "distil": False, "features": None,
        "seed": 0, "threads": 1,
    }  # fmt: skip
    assert queued["created_by"] == "label/api"
    run_next(server.store, server.trainings.kind)
    ready = labeller.get(f"/v1/rewards/{queued['id']}").json()
    assert (ready["status"], ready["progress"]) == ("ready", 1.0)
    assert set(ready["weights"]) == {"judge", "clean_guide", "probe"}
    assert ready["card"]["counts"] == {"benign": 5, "malign": 4, "unsure": 1}
    assert ready["card"]["label_seconds"] == 3.0
    again = _train(labeller, labelled)
    assert again["parent"] == queued["id"]
    listed = labeller.get("/v1/rewards", params={"dataset": labelled}).json()["data"]
    assert [one["id"] for one in listed] == [again["id"], queued["id"]]
    assert all("card" not in one for one in listed)


def test_thresholds_of_a_card_are_not_for_those_who_only_label(
    server: Served, labeller: httpx.Client, labelled: str
) -> None:
    path = f"/v1/rewards/{_train(labeller, labelled)['id']}"
    card = {
        "auc": 0.9,
        "calibrations": {"50": {"threshold": 0.7, "probe_thresholds": [0.1], "acceptance": 0.8}},
        "mistakes": [{"id": "x", "score": 0.4, "logit_score": 0.6, "label": "benign"}],
    }
    server.store.rewards.finish(take(server.store), {}, card)
    assert labeller.get(path).json()["card"] == {
        "auc": 0.9,
        "calibrations": {"50": {"acceptance": 0.8}},
        "mistakes": [{"id": "x", "score": 0.4, "label": "benign"}],
    }
    for key in ("APPROVE_KEY", "ADMIN_KEY"):
        with client(server, key) as other:
            assert other.get(path).json()["card"] == card


def test_a_policy_that_was_switched_off_can_be_trained_for(bundle: Bundle) -> None:
    with serve(bundle) as served, client(served, "LABEL_KEY") as http:
        http.post("/v1/datasets", json={"name": "bars", "question": "Is it dark?"})
        _label(http, "bars")
        served.store.policies.disable("bright", "somebody")
        served.policy_registry.refresh()
        for policy in ({}, {"policy": "bright"}):
            assert _train(http, "bars", **policy)["recipe"]["policy"] == "bright"
            trained = run_next(served.store, served.trainings.kind)
            assert served.store.rewards.read(trained).status == "ready"


def test_another_models_training_is_for_a_policy_of_it_that_censors() -> None:
    def policy(model: str, censors: bool) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(model=model), censors=censors)

    found = {
        "bright": policy("tiny", True),
        "none": policy("other", False),
        "promoted": policy("other", True),
        "open": policy("third", False),
    }
    registry: Any = SimpleNamespace(policies=found, known=found.__getitem__)
    nothing: Any = None
    orders = TrainingOrders(nothing, registry, {}, "bright", 1)
    assert orders.policy_of(None, "tiny") == "bright"
    assert orders.policy_of(None, "other") == "promoted"
    with pytest.raises(InvalidValue, match="no policy of model 'third' censors"):
        orders.policy_of(None, "third")


def test_cancel(server: Served, labeller: httpx.Client, labelled: str) -> None:
    waits = _train(labeller, labelled)
    assert labeller.post(f"/v1/rewards/{waits['id']}/cancel").json()["status"] == "cancelled"
    refused(labeller.post(f"/v1/rewards/{waits['id']}/cancel"), 409, "conflict")
    runs = _train(labeller, labelled)
    take(server.store)
    assert labeller.post(f"/v1/rewards/{runs['id']}/cancel").json()["status"] == "cancelling"


def test_a_failure_is_told(server: Served, labeller: httpx.Client, labelled: str) -> None:
    server.training.fault = ValueError("too few of them")
    queued = _train(labeller, labelled)
    run_next(server.store, server.trainings.kind)
    failed = labeller.get(f"/v1/rewards/{queued['id']}").json()
    assert (failed["status"], failed["error"]) == ("failed", "too few of them")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"policy": "moon"}, 404, "policy_not_found", "policy"),
        ({"policy": "none"}, 400, "invalid_value", "policy"),
        ({"target": 0}, 400, "invalid_value", "target"),
        ({"target": 0.5}, 400, "invalid_value", "target"),
        ({"target": "1%"}, 400, "invalid_value", "target"),
        ({"distil": True}, 400, "invalid_value", "distil"),
        ({"threads": 64}, 400, "invalid_value", "threads"),
        ({"features": "unseen"}, 400, "invalid_value", "features"),
        ({"features": "../x"}, 400, "invalid_value", "features"),
        ({"seed": -1}, 400, "invalid_value", "seed"),
        ({"dataset": "unknown"}, 404, "dataset_not_found", "dataset"),
        ({"dataset": "UPPER"}, 400, "invalid_value", "dataset"),
    ],
)
def test_a_wrong_training_is_refused_by_field(
    labeller: httpx.Client, labelled: str, body: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = labeller.post("/v1/rewards", json={"dataset": labelled} | body)
    refused(answer, status, code, param)


def test_features_are_those_of_the_bundle(
    server: Served, labeller: httpx.Client, labelled: str
) -> None:
    answer = labeller.post("/v1/rewards", json={"dataset": labelled, "features": "unseen"})
    message = answer.json()["error"]["message"]
    assert message == "features: model 'tiny' has no features 'unseen': it has seen"
    server.training.fault = None  # others may have left one
    queued = _train(labeller, labelled, features="seen")
    assert queued["recipe"]["features"] == "seen"
    run_next(server.store, server.trainings.kind)
    assert labeller.get(f"/v1/rewards/{queued['id']}").json()["status"] == "ready"
    given = server.training.seen[-1]
    assert given["features"].name == "seen.onnx"
    assert given["recipe"].features == "seen"


def test_too_few_labels_are_refused(labeller: httpx.Client, dataset: str) -> None:
    answer = labeller.post("/v1/rewards", json={"dataset": dataset})
    refused(answer, 400, "invalid_value", "dataset")
    message = answer.json()["error"]["message"]
    assert "0 benign and 0 malign images" in message
    assert "5 more benign and 5 more malign" in message


def test_labels_that_the_training_would_refuse_are_refused_at_once(
    server: Served, labeller: httpx.Client, labelled: str
) -> None:
    """The last reward's judge has seen all of them: nothing is left for a guide."""
    blobs = [one.image.blob for one in server.store.datasets.labelled(labelled)]
    rewards = server.store.rewards
    rewards.queue("rwd_before", labelled, None, {}, "label/api")
    rewards.finish(take(server.store), {}, {"split": {"judge": blobs, "guide": []}})
    answer = labeller.post("/v1/rewards", json={"dataset": labelled})
    refused(answer, 400, "invalid_value", "dataset")
    assert "1 more benign and 1 more malign" in answer.json()["error"]["message"]


def test_equal_images_are_one_label(
    server: Served, labeller: httpx.Client, labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = server.store.datasets.labelled(labelled)
    twins = [replace(one, image=replace(one.image, blob=labels[0].image.blob)) for one in labels]
    monkeypatch.setattr(server.store.datasets, "labelled", lambda _: twins)
    answer = labeller.post("/v1/rewards", json={"dataset": labelled})
    refused(answer, 400, "invalid_value", "dataset")
    assert "0 benign and 1 malign images" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("one", "code"),
    [
        ("rwd_0", "reward_not_found"),
        ("x" * 65, "not_found"),
        ("a%00b", "reward_not_found"),
        ("a'b", "reward_not_found"),
    ],
)
def test_an_unknown_reward_is_404(labeller: httpx.Client, one: str, code: str) -> None:
    refused(labeller.get(f"/v1/rewards/{one}"), 404, code)
    refused(labeller.post(f"/v1/rewards/{one}/cancel"), 404, code)
