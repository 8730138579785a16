"""The description covers every route, and says of each what really occurs."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.api.operations import OPERATIONS
from tests.service.api.conftest import client
from tests.service.api.server import Served


@pytest.fixture
def document(server: Served) -> dict[str, Any]:
    with client(server, None) as http:
        found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_described_and_nothing_else(
    server: Served, document: dict[str, Any]
) -> None:
    there = {f"{next(iter(route.methods))} {route.path}" for route in server.app.state.routes}
    assert there == set(operations(document)) == set(OPERATIONS)


def test_errors_are_those_that_occur(document: dict[str, Any]) -> None:
    assert "422" not in str(document)
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for name, operation in operations(document).items():
        statuses = set(operation["responses"])
        assert {"400", "401", "405", "408", "500"} <= statuses, name
        assert ("413" in statuses) == ("415" in statuses) == name.startswith("POST "), name
        assert ("403" in statuses) == bool(operation["security"]) or "/v1/session" in name, name
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/json"]
    images = operations(document)["POST /v1/images/generations"]["responses"]
    codes = {
        status: response["content"]["application/json"]["schema"]["properties"]["error"][
            "properties"
        ]["code"]["enum"]
        for status, response in images.items()
        if status != "200"
    }
    assert codes["400"] == ["invalid_value", "moderation_blocked"]
    assert codes["404"] == ["model_not_found", "not_found", "policy_not_found"]
    assert codes["409"] == ["policy_not_ready"]
    assert codes["429"] == ["overloaded"]
    assert codes["503"] == [
        "backend_unavailable", "censor_unavailable", "stopping", "store_unavailable"
    ]  # fmt: skip
    assert codes["504"] == ["deadline_exceeded"]


def test_answers_have_their_media_types(document: dict[str, Any]) -> None:
    kinds = {
        name: set(operation["responses"].get("200", {}).get("content", {}))
        for name, operation in operations(document).items()
    }
    assert kinds["GET /v1/datasets/{name}/images/{image_id}"] == {"image/png"}
    assert kinds["GET /v1/datasets/{name}/export"] == {"application/jsonl", "text/csv"}
    assert kinds["GET /v1/certificates/{certificate_id}/evidence"] == {"application/zip"}
    assert kinds["GET /metrics"] == {"text/plain"}
    assert kinds["GET /docs"] == {"text/html"}
    assert kinds["GET /v1/models"] == {"application/json"}


def test_keys_and_sessions_are_described(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    for name, operation in operations(document).items():
        open_to_all = not name.split(" ")[1].startswith("/v1/") or "/v1/session" in name
        assert operation["security"] == ([] if open_to_all else [{"key": []}, {"session": []}])


def test_its_schemas_are_schemas(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    request = document["components"]["schemas"]["GenerationRequest"]
    assert request["additionalProperties"] is False
    for name, field in request["properties"].items():
        assert {"type": "null"} in field["anyOf"], f"{name} may be left out"
    version = document["components"]["schemas"]["PromoteRequest"]["properties"]["version"]
    assert version["type"] == "integer"
