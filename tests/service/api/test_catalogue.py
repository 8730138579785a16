from __future__ import annotations

from dataclasses import fields

import httpx

from models.bundles.bundle import Bundle
from models.diffusion.method import Method
from tests.bundles import HEIGHT, THRESHOLD, WIDTH
from tests.service.api.conftest import client
from tests.service.api.server import Served


def test_models_name_their_sizes_and_policies(http: httpx.Client, bundle: Bundle) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert model["sizes"] == [f"{WIDTH}x{HEIGHT}"]
    assert set(model["policies"]) == {"none", "bright"}
    assert http.get("/v1/models/tiny").json() == model
    written = (bundle.folder / "manifest.json").stat().st_mtime
    assert (model["created"], model["alias_of"]) == (int(written), None)


def test_policies_say_what_they_censor_and_who_may_use_them(http: httpx.Client) -> None:
    policies = {policy["id"]: policy for policy in http.get("/v1/policies").json()["data"]}
    bright, none = policies["bright"], policies["none"]
    assert (bright["default"], bright["scope"]) == (True, "generate")
    assert (none["default"], none["scope"], none["judge"]) == (False, "admin", None)
    assert (bright["censors"], none["censors"]) == ("Is this a dark first pixel?", None), (
        "yes means malign"
    )
    assert (bright["disabled"], none["disabled"]) == (False, False)
    assert bright["judge"].startswith("sha256:")
    assert bright["num_inference_steps"] == [50, 20]
    assert bright["thresholds"] == {str(steps): value for steps, value in THRESHOLD.items()}
    method = {field.name for field in fields(Method)}
    assert method <= bright.keys(), "all that a draw's law depends on"
    assert http.get("/v1/policies/bright").json() == bright


def test_thresholds_are_hidden_without_the_scores_scope(server: Served) -> None:
    with client(server, "PLAIN_KEY") as http:
        for path in ("/v1/policies", "/v1/policies/bright"):
            assert "threshold" not in http.get(path).text


def test_what_does_not_exist_is_404(http: httpx.Client) -> None:
    for path, code in [("models/x", "model_not_found"), ("policies/x", "policy_not_found")]:
        response = http.get(f"/v1/{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, code)


def test_refusals_name_their_field_and_what_to_do(server: Served) -> None:
    images = "/v1/images/generations"
    asked = (
        ("PLAIN_KEY", images, {"policy": "none"}, "policy", "censors nothing"),
        ("PLAIN_KEY", images, {"censor": {"threshold": 0.1}}, "censor.threshold", "'bright': call"),
        ("SCORES_KEY", "/v1/moderations", {"input": []}, "input", "must hold 1 or more"),
        ("LABEL_KEY", "/v1/datasets", {"name": "A b", "question": "Is it?"}, "name", "underscores"),
        ("APPROVE_KEY", "/v1/policies/none/certify", {"epsilon": 0.3, "delta": 0.5}, "policy", ""),
        ("APPROVE_KEY", "/v1/policies/x/certify", {"epsilon": 0.3, "delta": 0.5}, "policy", ""),
    )
    for key, path, body, param, words in asked:
        with client(server, key) as http:
            error = http.post(path, json=body).json()["error"]
        assert error["param"] == param, error
        assert words in error["message"], error
