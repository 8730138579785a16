"""The client of a running service's REST API: JSON in and out, errors as sentences."""

from __future__ import annotations

import http.client
import json as json_
import os
import re
import ssl
import urllib.error
import urllib.request
from typing import Annotated, Any
from urllib.parse import SplitResult, quote, urlsplit

import typer

from service.config import is_loopback

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 120.0
ServiceUrl = Annotated[
    str | None,
    typer.Option("--url", help=f"The running service: WINNOW_URL, or {DEFAULT_URL}."),
]


class ServiceError(ValueError):
    """The service refused, or could not be reached; the message says why and what to do."""


class JsonObject(dict[str, Any]):
    """A JSON object of an answer. A missing key raises ServiceError: the server is not Winnow."""

    def __missing__(self, key: str) -> Any:
        raise ServiceError(f"the answer has no {key!r}: is it Winnow, and of this version?")


def path_of(*parts: str) -> str:
    """The path `/v1/…` of these parts, each percent-encoded."""
    return "/".join(("/v1", *(quote(part, safe="") for part in parts)))


def call(method: str, path: str, json: Any = None, url: str | None = None) -> Any:
    """The JSON object that the service answers to `method path`; None for an empty answer.

    The service is at `url`, or WINNOW_URL; the key is WINNOW_KEY. Raises ServiceError.
    """
    data = None if json is None else json_.dumps(json).encode()
    return parse(path, send(method, path, data, "application/json", url))


def parse(path: str, body: bytes) -> Any:
    """The object that an answer to `path` holds; None for an empty one. Raises ServiceError."""
    try:
        found = json_.loads(body, object_hook=JsonObject) if body else None
    except (ValueError, RecursionError):
        raise ServiceError(f"{path} did not answer with JSON: is it Winnow?") from None
    if not isinstance(found, dict | None):
        raise ServiceError(f"{path} did not answer with a JSON object: is it Winnow?")
    return found


def send(
    method: str, path: str, data: bytes | None = None, kind: str = "", url: str | None = None
) -> bytes:
    """The body of the service's answer. `kind` is the media type of `data`.

    Raises ServiceError.
    """
    address = base(url)
    headers = {"Accept": "*/*"}
    if key := _key():
        headers["Authorization"] = f"Bearer {key}"
    if data is not None:
        headers["Content-Type"] = kind
    request = urllib.request.Request(address + path, data, headers, method=method)
    try:
        try:
            with _opener(address).open(request, timeout=TIMEOUT_S) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            raise ServiceError(_refusal(error, bool(key))) from None
    except (http.client.InvalidURL, ValueError) as error:
        if isinstance(error, ServiceError):
            raise
        raise ServiceError(
            f"{method} {path} cannot be asked of {address}{_through(address)}: a URL is malformed"
        ) from None
    except http.client.HTTPException:
        raise ServiceError(
            f"the answer to {method} {path} broke off: the service's log holds its cause"
        ) from None
    except (urllib.error.URLError, OSError) as error:
        raise ServiceError(_unreachable(address, getattr(error, "reason", error))) from None


def base(url: str | None = None) -> str:
    """Where the service is, without a slash at the end. Raises ServiceError."""
    named = "--url" if url else "WINNOW_URL"
    given = url or os.environ.get("WINNOW_URL") or DEFAULT_URL
    found = given.rstrip("/")
    if not re.fullmatch("[!-~]+", found):
        raise ServiceError(f"{named}: {given!r} must be visible ASCII alone, without spaces")
    try:
        parts = urlsplit(found)
        port = parts.port  # where it is no number, or out of range, this raises
    except ValueError as error:
        raise ServiceError(f"{named}: {given!r} is no URL of a service: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ServiceError(
            f"{named}: {given!r} is no URL of a service: it begins with http:// or https:// and a "
            f"host, such as {DEFAULT_URL}"
        )
    if parts.username is not None:
        raise ServiceError(f"{named}: leave the user and password out: the key is WINNOW_KEY")
    if parts.query or parts.fragment or "?" in found or "#" in found:
        raise ServiceError(f"{named}: {given!r} must end before its ? or #")
    _refuse_route(named, given, parts)
    return found


def _refuse_route(named: str, given: str, parts: SplitResult) -> None:
    """Raises ServiceError for the URL that OpenAI's client takes, or of one of our routes."""
    if found := re.search("/v1/", f"{parts.path}/", re.IGNORECASE):
        wanted = parts._replace(path=parts.path[: found.start()]).geturl()
        raise ServiceError(
            f"{named}: {given!r} must be without /v1, which the commands put in themselves: "
            f"{wanted}"
        )


def _key() -> str | None:
    """The key that goes along, if there is one. Raises ServiceError, which never repeats it."""
    key = os.environ.get("WINNOW_KEY")
    if key and not re.fullmatch("[!-~]+", key):
        raise ServiceError(
            "WINNOW_KEY must be visible ASCII characters alone, without spaces or a line's end: an "
            "HTTP header carries no others"
        )
    return key or None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key must not travel to wherever a redirect points."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _proxies(address: str) -> dict[str, str]:
    """The environment's proxies, by scheme; none to this machine."""
    return {} if is_loopback(urlsplit(address).hostname) else urllib.request.getproxies()


def _through(address: str) -> str:
    """Which proxy stands between, in words; its URL may hold a password."""
    scheme = urlsplit(address).scheme
    return f" through the proxy of {scheme}_proxy" if scheme in _proxies(address) else ""


def _opener(address: str) -> urllib.request.OpenerDirector:
    handler = urllib.request.ProxyHandler(_proxies(address))
    return urllib.request.build_opener(_NoRedirects, handler)


def _unreachable(address: str, reason: object) -> str:
    """Why nothing came back, and what to look at."""
    if isinstance(reason, ssl.SSLError):
        what = getattr(reason, "verify_message", None) or reason.reason or reason
        return (
            f"{address}: TLS failed ({what}): is it https there, and does SSL_CERT_FILE name who "
            "signed its certificate?"
        )
    if isinstance(reason, TimeoutError):
        return f"{address} did not answer within {TIMEOUT_S:g} s ({reason})"
    return (
        f"no service answers at {address}{_through(address)} ({reason}): start it with `winnow "
        "serve`, or say where it is with --url or WINNOW_URL"
    )


def _refusal(error: urllib.error.HTTPError, with_key: bool) -> str:
    try:
        fault = json_.loads(error.read())["error"]
        message, code = str(fault["message"]), str(fault["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        location = error.headers.get("Location")
        further = f", which points to {location!r}: give that as --url" if location else ""
        return f"{error.url} answered {error.code} {error.reason}{further}: is it Winnow?"
    if code in ("invalid_api_key", "policy_not_allowed"):
        hint = "WINNOW_KEY holds another" if with_key else "set WINNOW_KEY"
        return f"{message} ({hint})"
    return message
