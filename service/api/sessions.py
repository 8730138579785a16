"""Sessions for the pages: a key and a person's name become a signed cookie.

A cookie travels with every request that a browser makes, whoever asked for it, so a caller without
a key of its own in the request must show that the request comes from our pages: `Origin` must be
this server's, and what changes anything must repeat the session's CSRF token. Anonymous callers
must also have reached the server under a name of this machine, which a rebound DNS name is not.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from service.api.auth import Authenticator, bearer
from service.api.routing import OpenRoute
from service.api.text import RequestBody
from service.config import Caller, KeySettings, is_loopback
from service.errors import InvalidApiKey, InvalidValue, OriginRefused, SessionEnded
from service.http.error_envelope import response

COOKIE = "winnow_session"
HEADER = "X-CSRF-Token"
SAFE = ("GET", "HEAD", "OPTIONS")
NAME = re.compile(r"\w(?:[\w .'@-]{0,38}\w)?")


@dataclass(frozen=True)
class Session:
    """Who opened a page: the key's name (None for anonymous), the person's, and until when."""

    key: str | None
    name: str
    expires: float


class SessionRequest(RequestBody):
    """`POST /v1/session`: a key, unless anonymous callers may label, and who labels."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    name: str = Field(min_length=1, max_length=40)


class Sessions:
    """Signs cookies, and tells who calls, by a key or by a cookie."""

    def __init__(
        self, authenticator: Authenticator, keys: Mapping[str, KeySettings], hours: float
    ) -> None:
        """Signed with what follows from all keys, so that every replica reads every cookie; without
        keys, with chance, so that a cookie lives as long as this process."""
        self._authenticator = authenticator
        self._secrets = {key.name: secret for secret, key in keys.items()}
        self._seconds = hours * 3600
        material = "\n".join(sorted(keys)).encode() or secrets.token_bytes(32)
        self._key = hmac.digest(material, b"winnow session", "sha256")

    def open(self, request: Request, body: SessionRequest) -> tuple[str, Session]:
        """A cookie for a person. Raises InvalidApiKey, OriginRefused or InvalidValue."""
        same_origin(request)
        name = " ".join(body.name.split())
        if not NAME.fullmatch(name):
            raise InvalidValue("letters, digits, spaces and .'@- alone, 40 at most", "name")
        caller = self._authenticator.caller(body.key)
        anonymous = caller is self._authenticator.anonymous
        if anonymous:
            if body.key is not None:
                # A mistyped key must not pass for none.
                raise InvalidApiKey("this key is not known")
            of_this_machine(request)
        session = Session(None if anonymous else caller.name, name, time.time() + self._seconds)
        payload = _encode(json.dumps([session.key, session.name, session.expires]).encode())
        return f"{payload}.{self._sign('cookie', payload)}", session

    def identify(self, request: Request) -> None:
        """Put `caller` and `annotator` into the request's state, from its key or its cookie.

        Raises InvalidApiKey, SessionEnded for a cookie that does not hold, and OriginRefused for a
        request that a foreign page has made.
        """
        state = request.state
        secret = bearer(request.headers)
        cookie = request.cookies.get(COOKIE)
        if secret is not None or (cookie is None and HEADER not in request.headers):
            caller = self._authenticator.caller(secret)
            if caller is self._authenticator.anonymous:
                of_this_machine(request)
                same_origin(request)
            state.caller, state.annotator = caller, f"{caller.name}/api"
            return
        session = self._read(cookie or "")
        if session is None:
            # A person must not become somebody else halfway through a page, a keyless one neither.
            raise SessionEnded("this session has ended: enter again, or send a key")
        state.caller = self._holder(request, session)
        state.annotator = f"{state.caller.name}/{session.name}"
        same_origin(request)
        token = request.headers.get(HEADER, "")
        if request.method not in SAFE and not hmac.compare_digest(
            token.encode(), self.csrf(cookie or "").encode()
        ):
            raise OriginRefused(f"the header {HEADER} is not this session's: load the page anew")

    def check_host(self, request: Request) -> None:
        """Raises InvalidApiKey where anybody may call, but not under the name that was asked."""
        if self._authenticator.anonymous is not None:
            of_this_machine(request)

    def csrf(self, cookie: str) -> str:
        """The token that unsafe requests of this session carry."""
        return self._sign("csrf", cookie)

    def valid(self, cookie: str) -> bool:
        """Whether this is a cookie of ours that still holds."""
        return self._read(cookie) is not None

    def _holder(self, request: Request, session: Session) -> Caller:
        if session.key is None:
            of_this_machine(request)
            return self._authenticator.caller(None)
        return self._authenticator.caller(self._secrets[session.key])

    def _read(self, cookie: str) -> Session | None:
        payload, _, signature = cookie.partition(".")
        signed = self._sign("cookie", payload)
        if not hmac.compare_digest(signature.encode(), signed.encode()):
            return None
        try:
            key, name, expires = json.loads(base64.urlsafe_b64decode(payload + "=="))
        except (binascii.Error, ValueError):
            return None
        if expires < time.time() or (key is not None and key not in self._secrets):
            return None
        return Session(key, name, expires)

    def _sign(self, purpose: str, text: str) -> str:
        return _encode(hmac.new(self._key, f"{purpose}:{text}".encode(), hashlib.sha256).digest())


def same_origin(request: Request) -> None:
    """Raises OriginRefused if a page of another server made this unsafe request."""
    if request.method in SAFE:
        return
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    if foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise OriginRefused("a page of another server made this request: use a key")


def of_this_machine(request: Request) -> None:
    """Raises InvalidApiKey unless the server was asked for as localhost or a loopback address."""
    given = request.headers.getlist("host")
    try:
        host = urlsplit(f"//{given[0]}").hostname if len(given) == 1 else None
    except ValueError:
        host = None
    if not is_loopback(host):
        raise InvalidApiKey("without a key this server answers as localhost or 127.0.0.1 alone")


def routes(sessions: Sessions) -> APIRouter:
    """Open, look at and close a session."""
    router = APIRouter(route_class=OpenRoute)

    def ended(error: SessionEnded) -> Response:
        """The browser forgets the cookie, so that whoever uses it may enter anew."""
        answer = response(error)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    @router.post("/v1/session", summary="Open a session for the pages")
    def enter(body: SessionRequest, request: Request, response: Response) -> dict[str, object]:
        cookie, session = sessions.open(request, body)
        forwarded = request.headers.get("x-forwarded-proto")
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=int(session.expires - time.time()),
            httponly=True,
            samesite="strict",
            secure="https" in (request.url.scheme, forwarded),
        )
        return {"name": session.name, "csrf": sessions.csrf(cookie)}

    @router.get("/v1/session", summary="Who this session is, and its CSRF token")
    def who(request: Request) -> Any:
        try:
            sessions.identify(request)
        except SessionEnded as error:
            return ended(error)
        cookie = request.cookies.get(COOKIE)
        caller, annotator = request.state.caller, request.state.annotator
        name = annotator.partition("/")[2]
        opened = cookie is not None and sessions.valid(cookie)
        return {
            "name": name if opened else None,
            "scopes": sorted(caller.scopes),
            "csrf": sessions.csrf(cookie) if cookie and opened else None,
        }

    @router.delete("/v1/session", summary="Close the session in this browser")
    def leave(request: Request, response: Response) -> Any:
        try:
            sessions.identify(request)
        except SessionEnded as error:
            return ended(error)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return {"name": None}

    return router


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
