"""Scores of finished images, and the verdict on each."""
