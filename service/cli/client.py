"""Asks the running service: JSON there and back, and its errors as sentences."""

from __future__ import annotations

import http.client
import json as json_
import os
import urllib.error
import urllib.request
from typing import Annotated, Any

import typer

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 120.0
ServiceUrl = Annotated[
    str | None,
    typer.Option("--url", help=f"The running service: WINNOW_URL, or {DEFAULT_URL}."),
]


class ServiceError(ValueError):
    """The service refused, or could not be reached; the message says why and what to do."""


def call(method: str, path: str, json: Any = None, url: str | None = None) -> Any:
    """What the service answers to `method path`, from JSON; None where it says nothing.

    The service is at `url`, or WINNOW_URL; the key is WINNOW_KEY. Raises ServiceError.
    """
    data = None if json is None else json_.dumps(json).encode()
    body = send(method, path, data, "application/json", url)
    try:
        return json_.loads(body) if body else None
    except ValueError:
        raise ServiceError(f"{path} did not answer with JSON: is it Winnow?") from None


def send(
    method: str, path: str, data: bytes | None = None, kind: str = "", url: str | None = None
) -> bytes:
    """What the service answers, as it is; `kind` is the media type of `data`.

    Raises ServiceError.
    """
    address = base(url)
    headers = {"Accept": "*/*"}
    if key := os.environ.get("WINNOW_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if data is not None:
        headers["Content-Type"] = kind
    request = urllib.request.Request(address + path, data, headers, method=method)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise ServiceError(_refusal(error, bool(key))) from None
    except http.client.HTTPException:
        raise ServiceError(
            f"the answer to {method} {path} broke off: the service's log holds its cause"
        ) from None
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(
            f"no service answers at {address} ({reason}): start it with `winnow serve`, or say "
            "where it is with --url or WINNOW_URL"
        ) from None


def base(url: str | None = None) -> str:
    """Where the service is, without a slash at the end. Raises ServiceError."""
    found = (url or os.environ.get("WINNOW_URL") or DEFAULT_URL).rstrip("/")
    if not found.startswith(("http://", "https://")):
        raise ServiceError(f"{found!r} is no URL of a service: it begins with http:// or https://")
    return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key must not travel to wherever a redirect points."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _refusal(error: urllib.error.HTTPError, with_key: bool) -> str:
    try:
        fault = json_.loads(error.read())["error"]
        message, code = str(fault["message"]), str(fault["code"])
    except (ValueError, KeyError, TypeError):
        return f"{error.url} answered {error.code} {error.reason}"
    if code in ("invalid_api_key", "policy_not_allowed"):
        hint = "WINNOW_KEY holds another" if with_key else "set WINNOW_KEY"
        return f"{message} ({hint})"
    return message
