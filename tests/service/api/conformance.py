"""Holds every answer that a test gets against the service's description of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fastapi import FastAPI
from jsonschema import Draft202012Validator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGE = 8 * 2**20
"""Bytes of an answer that is not kept and read here: that would hold up the loop it comes from."""


@dataclass
class Conformance:
    """An ASGI app around the service's; `faults` says what it answered against its description.

    What was accepted must have been allowed, too.
    """

    app: FastAPI
    faults: list[str] = field(default_factory=list)

    @cached_property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = self.app.state.description
        return found

    @cached_property
    def validators(self) -> dict[str, Draft202012Validator]:
        return {}

    def wrap(self, app: ASGIApp) -> ASGIApp:
        async def held(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            sent, got = bytearray(), bytearray()
            start: Message = {}

            async def receiving() -> Message:
                message = await receive()
                sent.extend(message.get("body", b""))
                return message

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    start.update(message)
                if len(got) < LARGE:
                    got.extend(message.get("body", b""))
                await send(message)

            await app(scope, receiving, sending)
            if start:
                self._check(scope, bytes(sent), start, bytes(got))

        return held

    def _check(self, scope: Scope, sent: bytes, start: Message, got: bytes) -> None:
        status, headers = start["status"], Headers(raw=start["headers"])
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        here = f"{scope['method']} {scope['path']} → {status}"
        operation = self._operation(scope["path"], method)
        if operation is None:
            if status not in (400, 404, 405):
                self.faults.append(f"{here}: no such operation")
            return
        response = operation["responses"].get(str(status))
        if response is None:
            self.faults.append(f"{here}: {bytes(got)[:300]!r}: the status is not described")
            return
        for name in response["headers"]:
            if name not in headers:
                self.faults.append(f"{here}: {name} is missing")
        kind = headers.get("content-type", "").partition(";")[0]
        content = response.get("content", {})
        if kind not in content and (kind or content):
            self.faults.append(f"{here}: {kind!r} is not among {list(content)}")
        elif kind == "application/json" and scope["method"] != "HEAD" and len(got) < LARGE:
            self._hold(here, content[kind]["schema"], json.loads(got))
        if status < 300 and sent and "requestBody" in operation:
            said = operation["requestBody"]["content"].get("application/json")
            if said is not None:
                self._hold(f"{here}, accepted", said["schema"], json.loads(sent))

    def _operation(self, path: str, method: str) -> dict[str, Any] | None:
        for route in self.app.state.routes:
            if route.path_regex.match(path) and method in route.methods:
                found: dict[str, Any] = self.document["paths"][route.path][method.lower()]
                return found
        return None

    def _hold(self, here: str, schema: dict[str, Any], value: Any) -> None:
        known = json.dumps(schema)
        if known not in self.validators:
            whole = schema | {"components": self.document["components"]}
            self.validators[known] = Draft202012Validator(whole)
        for error in self.validators[known].iter_errors(value):
            where = "/".join(map(str, error.absolute_path))
            self.faults.append(f"{here}: {where}: {error.message[:300]}")
