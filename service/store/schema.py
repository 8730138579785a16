"""The tables, in what SQLite and PostgreSQL have in common.

Everything is appended and nothing changed, but for two: a policy's pointer, which is the one thing
that decides what is in force, and how far a job is.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.types import TypeEngine

log = logging.getLogger("winnow.store")

metadata = MetaData()

EPOCH = datetime.fromtimestamp(0, UTC)
"""What a damaged time is read as: its row is shown with it, and the others as they are."""


@lru_cache(1024)
def _warn_of_damaged_time(column: str, value: str) -> None:
    """Warn of a damaged time, once in each process."""
    log.warning("a time in %s cannot be read, and counts as %s: %s", column, EPOCH.date(), value)


class _SqliteTime(sqlite.DATETIME):
    """SQLite keeps times as text, and whatever else is written there."""

    cache_ok = True

    def __init__(self, column: str, **format_: Any) -> None:
        """`column` is what a warning names; the rest is SQLAlchemy's own."""
        super().__init__(**format_)  # type: ignore[no-untyped-call]
        self.column = column

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Reads what SQLAlchemy's own reads, and anything else as EPOCH."""
        read = super().result_processor(dialect, coltype)
        assert read is not None, "SQLite keeps no times"

        def process(value: Any) -> datetime | None:
            try:
                return read(value)
            except (TypeError, ValueError):
                _warn_of_damaged_time(self.column, repr(value)[:80])
                return EPOCH

        return process


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone: SQLite has none, and PostgreSQL answers in its session's."""

    impl = DateTime
    cache_ok = True

    def __init__(self, column: str) -> None:
        """`column` is the table and the column that a warning names."""
        super().__init__(timezone=True)
        self.column = column

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of the column."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(_SqliteTime(self.column))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Written as UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Packed(TypeDecorator[dict[str, Any]]):
    """JSON, in SQLite under zlib: as text each record takes a whole page of the file.

    PostgreSQL compresses long values by itself.
    """

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The type of the column."""
        return dialect.type_descriptor(LargeBinary() if dialect.name == "sqlite" else JSON())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Packed for SQLite."""
        if dialect.name != "sqlite":
            return value
        return zlib.compress(json.dumps(value, separators=(",", ":")).encode())

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Unpacked from SQLite. What is damaged is no object: its reader names the row."""
        if dialect.name != "sqlite":
            return value
        try:
            return json.loads(zlib.decompress(value))
        except (zlib.error, TypeError, ValueError, RecursionError):
            return None


def _time(table: str, name: str = "created") -> Column[datetime]:
    return Column(name, UtcDateTime(f"{table}.{name}"), nullable=False)


decisions = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    _time("decisions"),
    Column("request_id", String(64), nullable=False),
    Column("key_name", String(64), nullable=False),
    Column("policy", String(64), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("document", Packed, nullable=False),
    Index("ix_decisions_created", "created"),
    Index("ix_decisions_request_id", "request_id"),
    Index("ix_decisions_key_name_created", "key_name", "created"),
    Index("ix_decisions_policy_created", "policy", "created"),
    Index("ix_decisions_outcome_created", "outcome", "created"),
)

policy_versions = Table(
    "policy_versions",
    metadata,
    Column("name", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", JSON, nullable=False),
    Column("reward", String(64)),
    _time("policy_versions"),
    Column("created_by", String(128), nullable=False),
    PrimaryKeyConstraint("name", "version"),
)

policy_pointers = Table(
    "policy_pointers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("shadow", Integer),
    _time("policy_pointers", "changed"),
    Column("changed_by", String(128), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _time("audit"),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_audit_subject", "subject"),
)

datasets = Table(
    "datasets",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("question", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    # "labels", or "certificate": whose labels may train nothing.
    Column("purpose", String(32), nullable=False),
    _time("datasets"),
    Column("created_by", String(128), nullable=False),
)

images = Table(
    "images",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("dataset", String(64), ForeignKey("datasets.name"), nullable=False),
    Column("batch", String(64), nullable=False),
    Column("position", Integer, nullable=False),
    Column("blob", String(80), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("draw", Integer, nullable=False),
    Column("policy", String(64), nullable=False),
    Column("policy_version", Integer, nullable=False),
    Column("backbone", String(80), nullable=False),
    Column("strategy", String(32), nullable=False),
    # The share of candidates like this one that were shown: 1 over it is the weight of its label.
    Column("inclusion", Float, nullable=False),
    Column("score", Float),
    # What the model was asked for, as `service.policies.inputs.drawn` says; null where it takes
    # nothing.
    Column("input", JSON(none_as_null=True)),
    # For whom it was drawn; nobody else is shown it while that person may still answer.
    Column("annotator", String(128), nullable=False),
    _time("images"),
    Index("ix_images_dataset_batch", "dataset", "batch", "position"),
    Index("ix_images_created", "created"),
)

labels = Table(
    "labels",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("image", String(64), ForeignKey("images.id"), nullable=False),
    # benign, malign, unsure, or withdrawn; of an image's labels the last one counts.
    Column("label", String(16), nullable=False),
    Column("annotator", String(128), nullable=False),
    Column("elapsed_ms", Integer, nullable=False),
    _time("labels"),
    Index("ix_labels_image", "image", "id"),
)

rewards = Table(
    "rewards",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("dataset", String(64), ForeignKey("datasets.name"), nullable=False),
    Column("parent", String(64)),
    Column("recipe", JSON, nullable=False),
    # Each network's sha256 by its part; set once, when its job is done.
    Column("weights", JSON),
    Column("card", JSON),
    _time("rewards"),
    Column("created_by", String(128), nullable=False),
    Index("ix_rewards_dataset", "dataset", "created"),
)

jobs = Table(
    "jobs",
    metadata,
    # The order in which they came.
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),
    # The reward, certificate, … that it makes.
    Column("subject", String(64), nullable=False),
    # queued, running, cancelling; done, failed, cancelled: these stay
    Column("state", String(16), nullable=False),
    Column("stage", String(128), nullable=False),
    Column("progress", Float, nullable=False),
    # How often it was taken up: a write with an older number is refused.
    Column("lease", Integer, nullable=False),
    # How many holders fell silent.
    Column("deaths", Integer, nullable=False),
    Column("holder", String(128), nullable=False),
    _time("jobs", "heartbeat"),
    Column("error", Text),
    _time("jobs"),
    Column("finished", UtcDateTime("jobs.finished")),
    Index("ix_jobs_subject", "kind", "subject", unique=True),
    Index("ix_jobs_state", "state", "kind"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("policy", String(64), nullable=False),
    Column("policy_version", Integer, nullable=False),
    # The sha256 of all that it covers: another fingerprint is another thing, and uncertified.
    Column("fingerprint", String(80), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("terms", JSON, nullable=False),
    Column("dataset", String(64), ForeignKey("datasets.name"), nullable=False),
    # drawing, labelling, passed, failed, abandoned; once it is one of the last three it stays
    Column("status", String(16), nullable=False),
    Column("result", JSON),
    _time("certificates"),
    Column("created_by", String(128), nullable=False),
    Column("finished", UtcDateTime("certificates.finished")),
    Index("ix_certificates_policy", "policy", "attempt", unique=True),
    Index("ix_certificates_fingerprint", "fingerprint"),
)


@dataclass(frozen=True)
class Row:
    """One decision as the table holds it: columns to find it by, and the whole record."""

    id: str
    created: datetime
    request_id: str
    key_name: str
    policy: str
    outcome: str
    document: Mapping[str, Any]
