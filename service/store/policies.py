"""Policies in the store: immutable versions, and the pointer that says which one is in force."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict, PolicyNotFound
from service.store.database import Database
from service.store.schema import EPOCH, audit, policy_pointers, policy_versions

logger = logging.getLogger("winnow.store")

MOVES = ("policy.seed", "policy.promote", "policy.rollback")
"""The actions that put a version in force."""


@dataclass(frozen=True)
class Pointer:
    """What is in force under a name: a version, perhaps switched off, perhaps with a shadow.

    `changed` tells one move from another that left the rest as it was. `off` is the number of the
    audit log's entry that last switched it off: it tells of a switch that is on again.
    """

    name: str
    version: int
    disabled: bool
    shadow: int | None
    changed: datetime
    off: int | None


_OFF = (
    select(func.max(audit.c.id))
    .where(audit.c.subject == policy_pointers.c.name, audit.c.action == "policy.disable")
    .scalar_subquery()
)
_POINTERS = select(policy_pointers, _OFF.label("off"))


@dataclass(frozen=True)
class Version:
    """One immutable version. `reward` is the id of the reward that it came with, if any."""

    name: str
    version: int
    document: Mapping[str, Any]
    reward: str | None
    created: datetime
    created_by: str


class Policies:
    """Versions are appended; pointers move, and each move is in the audit log beside it.

    Methods block, and raise StoreUnavailable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def seed(self, documents: Mapping[str, Mapping[str, Any]], by: str) -> list[str]:
        """Put names that are not in force yet in force, at their next version; returns them.

        A name that is known keeps what the store says, whatever the configuration says now.
        """
        with self._database.transaction() as connection:
            known = set(connection.scalars(select(policy_pointers.c.name)))
            fresh = [name for name in documents if name not in known]
            for name in fresh:
                # Versions may be there already that were never promoted.
                version = self._next(connection, name)
                self._insert(connection, name, version, documents[name], None, by)
                connection.execute(
                    insert(policy_pointers).values(
                        name=name,
                        version=version,
                        disabled=False,
                        shadow=None,
                        changed=datetime.now(UTC),
                        changed_by=by,
                    )
                )
                log(connection, by, "policy.seed", name, {"version": version})
            return fresh

    def pointers(self) -> dict[str, Pointer]:
        """What is in force now, by name."""
        with self._database.transaction() as connection:
            return {row.name: _pointer(row) for row in connection.execute(_POINTERS)}

    def read(self, name: str, version: int) -> Version:
        """One version. Raises PolicyNotFound."""
        query = select(policy_versions).where(
            policy_versions.c.name == name, policy_versions.c.version == version
        )
        row = self._database.one(query)
        if row is None:
            raise PolicyNotFound(f"policy {name!r} has no version {version}", "version")
        return _version(row)

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, the newest first."""
        query = (
            select(policy_versions)
            .where(policy_versions.c.name == name)
            .order_by(policy_versions.c.version.desc())
        )
        return [_version(row) for row in self._database.all(query)]

    def add(self, name: str, document: Mapping[str, Any], reward: str | None, by: str) -> int:
        """Append a version, which is not in force yet; returns its number."""

        def work(connection: Connection) -> int:
            version = self._next(connection, name)
            self._insert(connection, name, version, document, reward, by)
            log(connection, by, "policy.add", name, {"version": version, "reward": reward})
            return version

        return self._database.repeat(work)

    def point(
        self, name: str, before: Pointer | None, version: int, by: str, action: str
    ) -> Pointer:
        """Put a version in force, and switch the policy on; if it was the shadow, that ends.

        `before` is the pointer that the caller saw, None where there was none: if somebody moved it
        meanwhile, Conflict is raised and nothing changes.
        """
        values: dict[str, Any] = {"version": version, "disabled": False}
        if before is not None and before.shadow == version:
            values["shadow"] = None
        return self._move(name, before, by, action, **values)

    def disable(self, name: str, by: str) -> Pointer:
        """Stop a policy, whatever else is going on. Raises PolicyNotFound."""
        before = self.pointers().get(name)
        if before is None:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        return self._move(name, None, by, "policy.disable", forced=True, disabled=True)

    def shadow(self, name: str, before: Pointer, version: int | None, by: str) -> Pointer:
        """Score with another version beside the one in force; None ends it. Raises Conflict."""
        return self._move(name, before, by, "policy.shadow", shadow=version)

    def history(self, name: str, limit: int = 100) -> list[dict[str, Any]]:
        """The audit log of a name, newest first."""
        query = (
            select(audit).where(audit.c.subject == name).order_by(audit.c.id.desc()).limit(limit)
        )
        return [dict(row._mapping) for row in self._database.all(query)]

    def moves(self, name: str) -> list[dict[str, Any]]:
        """All entries of the audit log that put a version of a name in force, the oldest first.

        One that is damaged is passed over.
        """
        query = (
            select(audit)
            .where(audit.c.subject == name, audit.c.action.in_(MOVES))
            .order_by(audit.c.id)
        )
        with self._database.transaction() as connection:
            found = [dict(row._mapping) for row in connection.execute(query)]
        moves = [one for one in found if _names_version(one["detail"])]
        for one in found:
            if one not in moves:
                warning = "entry %d of the audit log, %s of %r, names no version: it is passed over"
                logger.warning(warning, one["id"], one["action"], name)
        return moves

    def _next(self, connection: Connection, name: str) -> int:
        query = select(func.max(policy_versions.c.version)).where(policy_versions.c.name == name)
        return (connection.scalar(query) or 0) + 1

    def _move(
        self,
        name: str,
        before: Pointer | None,
        by: str,
        action: str,
        forced: bool = False,
        **values: Any,
    ) -> Pointer:
        here = policy_pointers.c
        changed = {"changed": datetime.now(UTC), "changed_by": by}
        with self._database.transaction() as connection:
            if before is None and not forced:
                fresh = {"name": name, "shadow": None} | values | changed
                try:
                    connection.execute(insert(policy_pointers).values(**fresh))
                except IntegrityError:
                    raise Conflict(f"policy {name!r} was changed meanwhile: look again") from None
            else:
                change = update(policy_pointers).where(here.name == name)
                if before is not None:
                    change = change.where(
                        here.version == before.version, here.disabled == before.disabled
                    )
                    if before.changed != EPOCH:  # a damaged time is like none, and is mended here
                        change = change.where(here.changed == before.changed)
                if connection.execute(change.values(**values, **changed)).rowcount != 1:
                    raise Conflict(f"policy {name!r} was changed meanwhile: look again")
            log(connection, by, action, name, {"before": before and _audit_values(before)} | values)
            row = connection.execute(_POINTERS.where(here.name == name)).one()
            return _pointer(row)

    def _insert(
        self,
        connection: Connection,
        name: str,
        version: int,
        document: Mapping[str, Any],
        reward: str | None,
        by: str,
    ) -> None:
        connection.execute(
            insert(policy_versions).values(
                name=name,
                version=version,
                document=dict(document),
                reward=reward,
                created=datetime.now(UTC),
                created_by=by,
            )
        )


def log(
    connection: Connection, actor: str, action: str, subject: str, detail: Mapping[str, Any]
) -> None:
    """Append to the audit log, in the same transaction as what it tells of."""
    connection.execute(
        insert(audit).values(
            created=datetime.now(UTC),
            actor=actor,
            action=action,
            subject=subject,
            detail=dict(detail),
        )
    )


def _names_version(detail: Any) -> bool:
    return isinstance(detail, dict) and isinstance(detail.get("version"), int)


def _pointer(row: Any) -> Pointer:
    return Pointer(row.name, row.version, row.disabled, row.shadow, row.changed, row.off)


def _audit_values(pointer: Pointer) -> dict[str, Any]:
    return {key: value for key, value in vars(pointer).items() if key not in ("changed", "off")}


def _version(row: Any) -> Version:
    return Version(row.name, row.version, row.document, row.reward, row.created, row.created_by)
