"""A bundle: the folder that is served, and the manifest in it."""
