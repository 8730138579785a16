"""Who calls, and what they may do. A peer's address is never evidence of anything."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.requests import Request

from service.config import ANONYMOUS, AuthSettings, Caller, KeySettings
from service.errors import InvalidApiKey


def person(request: Request) -> str:
    """Who labels, reports, promotes or ends: `key/name` in a session, else `key/api`."""
    name: str = request.state.annotator
    return name


class Authenticator:
    """Tells the caller from the key that came with a request.

    `anonymous` is the caller without a key; None where a key is required.
    """

    def __init__(self, settings: AuthSettings, keys: Mapping[str, KeySettings]) -> None:
        self.anonymous = (
            Caller(ANONYMOUS, frozenset(settings.anonymous_scopes)) if settings.anonymous else None
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


def bearer(headers: Headers) -> str | None:
    """The key that a request brings, None for one without. Raises InvalidApiKey for several."""
    given = headers.getlist("authorization")
    if len(given) > 1:
        raise InvalidApiKey("the header Authorization stands twice")
    scheme, _, secret = "".join(given).partition(" ")
    return (secret.strip() or None) if scheme.lower() == "bearer" else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
