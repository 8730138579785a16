"""The tables, in what SQLite and PostgreSQL have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
)

VERSION = "0001"
"""The schema's version: the first revision that a migration can start from."""

metadata = MetaData()

decisions = Table(
    "decisions",
    metadata,
    Column("id", String(64), primary_key=True),
    # SQLite has no time zones: what is written is always UTC.
    Column("created", DateTime(timezone=True), nullable=False),
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

# Alembic's own table, by its names: its first migration then finds where the schema stands.
schema_version = Table(
    "alembic_version",
    metadata,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
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
