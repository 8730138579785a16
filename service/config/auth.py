"""Who may call, and the keys that they call with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from service.config.base import ConfigError, Name, Part, Variable
from service.errors import PolicyNotAllowed

ANONYMOUS = "anonymous"
"""The name of callers without a key, in records and in the fair queue."""
Scope = Literal["generate", "scores", "label", "approve", "admin"]


def _not_anonymous(name: str) -> str:
    if name == ANONYMOUS:
        raise ValueError(f"{name} is whoever calls without a key: choose another name")
    return name


class KeySettings(Part):
    """An API key: the environment variable that holds it, never the key itself."""

    name: Annotated[Name, AfterValidator(_not_anonymous)]
    secret_env: Variable
    scopes: list[Scope] = Field(min_length=1)


class AuthSettings(Part):
    """Who may call. Anonymous access is refused unless the server listens on loopback."""

    anonymous: bool = False
    anonymous_scopes: list[Scope] = Field(["generate"])
    keys: list[KeySettings] = Field([])

    @model_validator(mode="after")
    def _has_callers(self) -> AuthSettings:
        if not self.anonymous and not self.keys:
            raise ValueError("keys: nobody could call: give keys, or anonymous: true on loopback")
        if "admin" in self.anonymous_scopes:
            raise ValueError("anonymous_scopes: must not hold admin")
        for what, found in (
            ("names", [key.name for key in self.keys]),
            ("secret_env", [key.secret_env for key in self.keys]),
        ):
            if len(set(found)) < len(found):
                raise ValueError(f"keys: {what} must differ")
        return self


@dataclass(frozen=True)
class Caller:
    """Who calls: a key's name and scopes; `admin` stands for all scopes."""

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


def secrets(auth: AuthSettings, environment: Mapping[str, str]) -> dict[str, KeySettings]:
    """Each key's secret, read from the environment.

    Raises ConfigError with a line for each that is missing or cannot be one.
    """
    found: dict[str, KeySettings] = {}
    faults = []
    for index, key in enumerate(auth.keys):
        secret = environment.get(key.secret_env, "")
        fault = _fault(secret)
        if fault is None and secret in found:
            fault = "repeats another key"
        if fault is not None:
            faults.append(f"auth.keys.{index}: environment variable {key.secret_env} {fault}")
        found[secret] = key
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def _fault(secret: str) -> str | None:
    """What is wrong with a secret; never what it is."""
    if len(secret) < 16:
        return "must hold a key of 16 characters or more"
    if not re.fullmatch("[!-~]+", secret):
        return (
            "must hold visible ASCII characters alone, without spaces or a line's end: an HTTP "
            "header carries no others"
        )
    if len(secret) > 1024:
        return "must hold a key of 1024 characters or fewer"
    if "change-me" in secret:
        return "still holds the example's key, which everybody knows: put one of your own there"
    return None
