"""Policies: what they say, which are in force, their networks, and their canaries."""
