"""The store as one thing: its database, and what is kept in it."""

from __future__ import annotations

from service.store.blobs import Blobs
from service.store.certificate_labels import CertificateLabels
from service.store.certificates import Certificates
from service.store.database import Database
from service.store.datasets import Datasets
from service.store.decisions import Decisions
from service.store.jobs import Jobs
from service.store.policies import Policies
from service.store.rewards import Rewards


class Store:
    """Everything that is kept. Every method of its parts blocks, and any thread may call it."""

    def __init__(self, url: str, blobs_url: str, create: bool = True) -> None:
        """Open the store; with `create`, make what is missing. Raises ConfigError."""
        self.database = Database(url, create)
        self.blobs = Blobs(blobs_url)
        self.decisions = Decisions(self.database)
        self.policies = Policies(self.database)
        self.datasets = Datasets(self.database)
        self.jobs = Jobs(self.database)
        self.rewards = Rewards(self.database)
        self.certificates = Certificates(self.database)
        self.certificate_labels = CertificateLabels(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
