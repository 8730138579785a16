"""All tables. Until the first release they are made from `schema` itself; the first change after
it writes them out here, as they were released, and adds a migration of its own."""

from alembic import op

from service.store.schema import metadata

revision = "0100"
down_revision = None


def upgrade() -> None:
    """Make every table and index."""
    metadata.create_all(op.get_bind())
