"""The REST face: FastAPI routes in OpenAI's Images shape. Knows the router, not Ray."""
