"""Policies, datasets, labels, rewards, certificates, and the audit log."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _when(name: str = "created") -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)


def upgrade() -> None:
    """Everything that labelling, training and promotion keep."""
    op.create_table(
        "policy_versions",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("reward", sa.String(64)),
        _when(),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("name", "version"),
    )
    op.create_table(
        "policy_pointers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("shadow", sa.Integer),
        _when("changed"),
        sa.Column("changed_by", sa.String(128), nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        _when(),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("question", sa.Text, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        _when(),
        sa.Column("created_by", sa.String(128), nullable=False),
    )
    op.create_table(
        "images",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("dataset", sa.String(64), sa.ForeignKey("datasets.name"), nullable=False),
        sa.Column("batch", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("blob", sa.String(80), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("draw", sa.Integer, nullable=False),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("backbone", sa.String(80), nullable=False),
        sa.Column("strategy", sa.String(32), nullable=False),
        sa.Column("inclusion", sa.Float, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("annotator", sa.String(128), nullable=False),
        _when(),
    )
    op.create_index("ix_images_dataset_batch", "images", ["dataset", "batch", "position"])
    op.create_index("ix_images_created", "images", ["created"])
    op.create_table(
        "labels",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("image", sa.String(64), sa.ForeignKey("images.id"), nullable=False),
        sa.Column("label", sa.String(16), nullable=False),
        sa.Column("annotator", sa.String(128), nullable=False),
        sa.Column("elapsed_ms", sa.Integer, nullable=False),
        _when(),
    )
    op.create_index("ix_labels_image", "labels", ["image", "id"])
    op.create_table(
        "rewards",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("dataset", sa.String(64), sa.ForeignKey("datasets.name"), nullable=False),
        sa.Column("parent", sa.String(64)),
        sa.Column("recipe", sa.JSON, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(128), nullable=False),
        sa.Column("progress", sa.Float, nullable=False),
        _when("heartbeat"),
        sa.Column("weights", sa.JSON),
        sa.Column("card", sa.JSON),
        sa.Column("error", sa.Text),
        _when(),
        sa.Column("created_by", sa.String(128), nullable=False),
    )
    op.create_index("ix_rewards_dataset", "rewards", ["dataset", "created"])
    op.create_table(
        "certificates",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("policy", sa.String(64), nullable=False),
        sa.Column("policy_version", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(80), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("terms", sa.JSON, nullable=False),
        sa.Column("dataset", sa.String(64), sa.ForeignKey("datasets.name"), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("result", sa.JSON),
        _when(),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_certificates_policy", "certificates", ["policy", "attempt"], unique=True)
    op.create_index("ix_certificates_fingerprint", "certificates", ["fingerprint"])
