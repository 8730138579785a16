"""The REST face: FastAPI routes in OpenAI's Images shape. Knows the sampling loop, not Ray.

`web` has the pages.
"""
