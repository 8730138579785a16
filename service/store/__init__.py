"""The store: what was decided, labelled, trained and put in force, kept through any restart.

`schema` is the tables and `migrations` how they came to be, `database` the connection, `blobs` what
is too large for a table. One file for each thing that is kept: `decisions`, `policies`, `datasets`,
`rewards`, `certificates`, `jobs`; `store` holds them together, and `recorder` writes decisions
while requests wait. Knows SQL and nothing of torch or Ray.
"""
