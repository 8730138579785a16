"""Thin Ray Serve shells around plain classes: what Serve needs, and nothing that decides."""
