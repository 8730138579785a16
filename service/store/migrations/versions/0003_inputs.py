"""What an image of a conditional model was drawn under."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Images that are there already are of models that take nothing."""
    op.add_column("images", sa.Column("input", sa.JSON))
