"""What the routes work with, put together once per ingress replica."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from models.bundles.manifest import Manifest
from service.certificates.coverage import CertificateCoverage
from service.certificates.service import CertificateService
from service.config import KeySettings, Settings
from service.generation.moderation import ModerationService
from service.generation.reports import ReportService
from service.generation.service import GenerationService
from service.http.gate import Gate
from service.metrics.ingress import IngressMetrics
from service.policies.canary import Canaries
from service.policies.promotion import PromotionService
from service.policies.registry import PolicyRegistry
from service.ports import BackboneClient, JudgeClient
from service.store.datasets import Dataset, ImageToLabel
from service.store.recorder import Recorder
from service.store.store import Store


class LabellingClient(Protocol):
    """The labelling service, seen from the routes."""

    async def propose(
        self,
        dataset: Dataset,
        size: int,
        strategy: str | None,
        annotator: str,
        exclude_batches: Sequence[str],
        policy: str | None = None,
    ) -> list[ImageToLabel]:
        """The next images for a person to label, drawn if need be.

        Raises PolicyNotFound, PolicyDisabled, BackendUnavailable, CensorUnavailable, Overloaded or
        StoreUnavailable.
        """
        ...


@dataclass(frozen=True)
class Context:
    """`keys` maps a secret to its key; `gather_metrics` gives the page of all replicas.

    Without `labelling` there is no labelling and no training.
    """

    settings: Settings
    manifests: Mapping[str, Manifest]
    policy_registry: PolicyRegistry
    keys: Mapping[str, KeySettings] = field(repr=False)
    generation: GenerationService
    backbone_client: BackboneClient
    judge_client: JudgeClient
    promotion: PromotionService
    reports: ReportService
    moderation: ModerationService
    store: Store
    recorder: Recorder
    metrics: IngressMetrics
    certified: CertificateCoverage
    certificates: CertificateService
    canaries: Canaries
    gather_metrics: Callable[[], Awaitable[str]]
    gate: Gate
    labelling: LabellingClient | None = None
