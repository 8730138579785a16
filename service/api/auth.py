"""Who calls, and what they may do. A peer's address is never evidence of anything."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request

from service.config import AuthSettings, KeySettings, Scope
from service.errors import InvalidApiKey, PolicyNotAllowed


@dataclass(frozen=True)
class Caller:
    """A key's name and scopes; `admin` stands for all scopes."""

    name: str
    scopes: frozenset[Scope]

    def has(self, scope: Scope) -> bool:
        """Whether this caller may do what `scope` allows."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, *scopes: Scope) -> None:
        """Raises PolicyNotAllowed without any of these scopes."""
        if not any(self.has(scope) for scope in scopes):
            wanted = " or the ".join(repr(scope) for scope in scopes)
            raise PolicyNotAllowed(f"this needs a key with the {wanted} scope")


def person(request: Request) -> str:
    """Who labels, reports, promotes or ends: `key/name` in a session, else `key/api`."""
    name: str = request.state.annotator
    return name


class Authenticator:
    """Tells the caller from the key that came with a request.

    `anonymous` is who calls without a key, or None where nobody may.
    """

    def __init__(self, settings: AuthSettings, keys: Mapping[str, KeySettings]) -> None:
        self.anonymous = (
            Caller("anonymous", frozenset(settings.anonymous_scopes))
            if settings.anonymous
            else None
        )
        self._callers = [
            (_digest(secret), Caller(key.name, frozenset(key.scopes)))
            for secret, key in keys.items()
        ]

    def caller(self, secret: str | None) -> Caller:
        """The caller behind a bearer key, or None for a request without one.

        Raises InvalidApiKey, unless anonymous access is on: then an unknown key counts as none,
        because OpenAI's client always sends one.
        """
        found: Caller | None = None
        if secret is not None:
            digest = _digest(secret)
            for known, caller in self._callers:
                if hmac.compare_digest(known, digest):
                    found = caller
        found = found or self.anonymous
        if found is None:
            raise InvalidApiKey("send a valid key as `Authorization: Bearer <key>`")
        return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
