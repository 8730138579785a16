"""The tables, in what SQLite and PostgreSQL have in common.

Everything is appended and nothing changed, but for two: a policy's pointer, which is the one thing
that decides what is in force, and the state of a training that runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
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
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
)

metadata = MetaData()


class Moment(TypeDecorator[datetime]):
    """A time with its zone: SQLite has none, and PostgreSQL answers in its session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Written as UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _created(name: str = "created") -> Column[datetime]:
    return Column(name, Moment, nullable=False)


decisions = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    _created(),
    Column("request_id", String(64), nullable=False),
    Column("key_name", String(64), nullable=False),
    Column("policy", String(64), nullable=False),
    Column("outcome", String(64), nullable=False),
    Column("document", JSON, nullable=False),
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
    _created(),
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
    _created("changed"),
    Column("changed_by", String(128), nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _created(),
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
    _created(),
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
    # What the model was asked for, as `service.inputs.drawn` says; null where it takes nothing.
    Column("input", JSON(none_as_null=True)),
    # For whom it was drawn; nobody else is shown it while that person may still answer.
    Column("annotator", String(128), nullable=False),
    _created(),
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
    _created(),
    Index("ix_labels_image", "image", "id"),
)

rewards = Table(
    "rewards",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("dataset", String(64), ForeignKey("datasets.name"), nullable=False),
    Column("parent", String(64)),
    Column("recipe", JSON, nullable=False),
    # queued, training, cancelling, ready, failed, cancelled
    Column("status", String(16), nullable=False),
    Column("stage", String(128), nullable=False),
    Column("progress", Float, nullable=False),
    _created("heartbeat"),
    # Each network's sha256 by its part; set once, when it is ready.
    Column("weights", JSON),
    Column("card", JSON),
    Column("error", Text),
    _created(),
    Column("created_by", String(128), nullable=False),
    Index("ix_rewards_dataset", "dataset", "created"),
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
    _created(),
    Column("created_by", String(128), nullable=False),
    Column("finished", Moment),
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
