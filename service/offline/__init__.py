"""Evaluation, replay and import checks: the service's parts without a server."""
