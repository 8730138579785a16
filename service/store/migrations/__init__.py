"""How the tables came to be: alembic's scripts, run by `database.Database` when it opens."""
