"""`GET /openapi.json`: the service's description of itself, from its routes and `operations`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api import response_schemas
from service.api.middleware import REQUEST_ID
from service.api.operations import BODY, EVERYWHERE, KEYED, OPERATIONS, UNSAFE, Fault, Operation
from service.api.routing import OpenRoute, Route
from service.api.sessions import COOKIE, HEADER
from service.errors import LONGEST, MethodNotAllowed

ABOUT = """Images from a diffusion model, with the bad ones kept from leaving.

HEAD is answered wherever GET is. Unknown fields and parameters are refused, and null in a field
that may be left out is that field left out. `x-should-retry: false` stands wherever the same
request would fail again."""
REFERENCE = "#/components/schemas/{model}"
SECURITY = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": f"A page's session; what changes anything also sends its `{HEADER}`.",
    },
}
NAMED = {"type": "string", "minLength": 1, "maxLength": LONGEST}
HEADERS = {
    "X-Request-ID": {"schema": {"type": "string"}, "required": True},
    "Retry-After": {"schema": {"type": "string", "pattern": "^[0-9]+$"}, "required": True},
    "x-should-retry": {"schema": {"const": "false"}, "required": True},
    "Allow": {"schema": {"type": "string"}, "required": True},
    "WWW-Authenticate": {"schema": {"const": "Bearer"}, "required": True},
    "Location": {"schema": {"type": "string"}, "required": True},
}


def routes() -> APIRouter:
    """The route of the description."""
    router = APIRouter(route_class=OpenRoute)

    @router.get("/openapi.json", summary="This description")
    async def document(request: Request) -> JSONResponse:
        return JSONResponse(request.app.state.description)

    return router


def describe(described: Sequence[Any], anonymous: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes. `anonymous` says that a key may be left out."""
    found = get_openapi(
        title="Winnow",
        version=version("winnow-serve"),
        summary="Images from a diffusion model, with the bad ones kept from leaving.",
        description=ABOUT,
        routes=list(described),
    )
    parts = found.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    models = {
        model
        for operation in OPERATIONS.values()
        if isinstance(model := operation.answer, type) and issubclass(model, BaseModel)
    }
    ordered = sorted(models | {response_schemas.Error}, key=lambda model: model.__name__)
    _, defined = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=REFERENCE
    )
    for name, schema in defined["$defs"].items():
        assert name not in schemas, f"two schemas are called {name}"
        schemas[name] = schema
    parts["securitySchemes"] = SECURITY
    parts["headers"] = HEADERS
    parts["parameters"] = {
        "request-id": {
            "name": "X-Request-ID",
            "in": "header",
            "description": "Returned, and in the log; one is made where there is none.",
            "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern}$"},
        }
    }
    for route in described:
        (method,) = route.methods
        _complete(found["paths"][route.path][method.lower()], method, route, anonymous)
    return found


def _complete(said: dict[str, Any], method: str, route: Route, anonymous: bool) -> None:
    """Put into an operation what FastAPI does not know of it."""
    operation = OPERATIONS.get(f"{method} {route.path}")
    if operation is None:
        raise LookupError(f"service.api.operations: {method} {route.path} has no row of OPERATIONS")
    said["operationId"] = f"{method} {route.path}"
    said["tags"] = [route.path.split("/")[2] if route.path.startswith("/v1/") else "service"]
    said["security"] = []
    if not route.open:
        said["security"] = [{"key": []}, {"session": []}, *([{}] if anonymous else [])]
    queries = [one for one in said.get("parameters", ()) if one["in"] != "path"]
    # A page's script reads a part of the path that its route does not.
    of_path = [
        {"name": name, "in": "path", "required": True, "schema": NAMED}
        for name in route.param_convertors
    ]
    said["parameters"] = [*of_path, *queries, {"$ref": "#/components/parameters/request-id"}]
    faults = [*EVERYWHERE, *operation.faults]
    if not route.open:
        faults += KEYED
    if method == "POST":
        faults += [*UNSAFE, *BODY]
    said["responses"] = _good(operation, route.status_code or 200) | _bad(faults)


def _good(operation: Operation, status: int) -> dict[str, Any]:
    if operation.answer == "redirect":
        answer = _response("Where the pages begin.", {}, "Location")
        return {"307": answer}
    content: dict[str, Any]
    if isinstance(operation.answer, str):
        content = {kind: {"schema": {}} for kind in operation.answer.split(", ")}
        description = "As the media type says."
    else:
        content = {"application/json": {"schema": _reference(operation.answer)}}
        description = (operation.answer.__doc__ or operation.answer.__name__).strip()
    return {str(status): _response(description, content)}


def _bad(faults: Iterable[Fault]) -> dict[str, Any]:
    """A response for each status, with the codes that it comes with."""
    by_status: dict[int, list[Fault]] = defaultdict(list)
    for fault in faults:
        by_status[fault.status].append(fault)
    found = {}
    for status, ours in sorted(by_status.items()):
        codes = sorted({fault.code for fault in ours})
        schema = {
            "allOf": [_reference(response_schemas.Error)],
            "properties": {"error": {"properties": {"code": {"enum": codes}}}},
        }
        headers = ["Retry-After" if ours[0].retryable else "x-should-retry"]
        headers += ["Allow"] * (status == MethodNotAllowed.status)
        headers += ["WWW-Authenticate"] * (status == 401)
        found[str(status)] = _response(
            " or ".join(f"`{code}`" for code in codes),
            {"application/json": {"schema": schema}},
            *headers,
        )
    return found


def _response(description: str, content: Mapping[str, Any], *headers: str) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-ID", *headers)
        },
    }
    return response | ({"content": content} if content else {})


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=model.__name__)}
