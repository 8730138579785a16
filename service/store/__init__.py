"""The decision store: what was decided, by which weights, kept so that it can be explained later.

`schema` is the table, `database` the connection, `store` the queries, `recorder` the thread that
writes while requests wait. Knows SQL and nothing of images, torch or Ray.
"""
