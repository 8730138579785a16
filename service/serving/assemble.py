"""The service put together from its settings: for Ray's ingress, for one process, for tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from models.bundles.bundle import Bundle
from service import config
from service.api.context import Context, LabellingClient
from service.api.generation_body import encode
from service.certificates.coverage import CertificateCoverage
from service.certificates.service import CertificateService
from service.config import ModelSettings, Settings
from service.generation.moderation import ModerationService
from service.generation.reports import ReportService
from service.generation.sampling_loop import Observer, SamplingLoop
from service.generation.service import GenerationService
from service.generation.shadow import Shadows
from service.http.gate import Gate
from service.images.encode import from_png
from service.metrics.exposition import merge, render
from service.metrics.ingress import IngressMetrics
from service.policies.canary import EVERY_S, Canaries, Score
from service.policies.policy import Policy
from service.policies.promotion import PromotionService
from service.policies.registry import PolicyRegistry
from service.policies.seeding import configured_policies
from service.policies.weights import Weights
from service.ports import BackboneClient, JudgeClient
from service.store.recorder import Recorder
from service.store.retention import Retention
from service.store.store import Store


@dataclass(frozen=True)
class Backends:
    """What draws and judges, wherever it runs.

    `scores` asks every judge of a model; `load` brings networks into every replica of a model, by
    part and sha256 name, or raises BackendUnavailable or CensorUnavailable; `pages` gives the
    metrics of each replica, by its name.
    """

    backbone_client: BackboneClient
    judge_client: JudgeClient
    scores: Score
    load: Callable[[str, Mapping[str, str]], Awaitable[None]]
    pages: Callable[[], Awaitable[Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Service:
    """A service that runs: what its routes work with, and its end."""

    context: Context
    retention: Retention

    def close(self) -> None:
        """Write the records that still wait; the last to leave SQLite folds its log in."""
        context = self.context
        context.generation.close()
        for one in (context.recorder, context.policy_registry, context.certified, self.retention):
            one.close()
        context.store.close()


def assemble(
    settings: Settings,
    bundles: Mapping[str, Bundle],
    backends: Backends,
    metrics: IngressMetrics,
    environment: Mapping[str, str],
    *,
    labelling: LabellingClient | None = None,
    replica: str = "ingress",
    poll_s: float = 0.5,
    canaries_every_s: float = EVERY_S,
) -> Service:
    """The service of these settings, over `backends`; secrets and URLs come from `environment`.

    `bundles` are those of the models, by name; `replica` is what this process is called beside the
    others in the metrics. Raises ConfigError and StoreUnavailable.
    """
    database_url, blobs_url = config.store_urls(settings.store, environment)
    store = Store(database_url, blobs_url)
    weights = {name: Weights(bundle, blobs_url) for name, bundle in bundles.items()}
    manifests = {name: bundle.manifest for name, bundle in bundles.items()}
    policy_registry = PolicyRegistry(store, configured_policies(settings, bundles), poll_s)
    metrics.watch(lambda: policy_registry.policies)

    async def warm(policy: Policy) -> None:
        await backends.load(policy.settings.model, policy.parts)

    async def gather_metrics() -> str:
        return merge([(replica, render(metrics.registry)), *await backends.pages()])

    canaries = Canaries(
        backends.scores,
        lambda: policy_registry.policies,
        lambda model, name: from_png(weights[model].find(name, ".png").read_bytes()),
        lambda model: manifests[model].backbone.image,
        metrics.canaries,
        canaries_every_s,
    )
    sampling_loops = {
        name: sampling_loop(model, backends.backbone_client, backends.judge_client, metrics.draw)
        for name, model in settings.models.items()
    }
    certified = CertificateCoverage(
        store.certificates,
        settings,
        manifests,
        lambda: policy_registry.policies,
        metrics.certificates,
    )
    generation = GenerationService(
        settings=settings,
        manifests=manifests,
        policy_registry=policy_registry,
        canaries=canaries,
        backbone_client=backends.backbone_client,
        sampling_loops=sampling_loops,
        shadows=Shadows(backends.judge_client, metrics.shadow, metrics.shadow_dropped),
        recorder=Recorder(store.decisions, settings.store.keep_days),
        metrics=metrics,
        covers=certified.covers,
        encode=encode,
    )
    context = Context(
        settings=settings,
        manifests=manifests,
        policy_registry=policy_registry,
        keys=config.secrets(settings.auth, environment),
        generation=generation,
        backbone_client=backends.backbone_client,
        judge_client=backends.judge_client,
        promotion=PromotionService(settings, store, policy_registry, canaries, warm),
        reports=ReportService(store, backends.backbone_client, manifests),
        moderation=ModerationService(
            settings, manifests, policy_registry, canaries, backends.judge_client
        ),
        store=store,
        recorder=generation.recorder,
        metrics=metrics,
        certified=certified,
        certificates=CertificateService(
            store, policy_registry, certified, sampling_loops, settings.limits.prompt_chars
        ),
        canaries=canaries,
        gather_metrics=gather_metrics,
        labelling=labelling,
        gate=Gate(settings.ingress.max_ongoing_requests),
    )
    return Service(context, Retention(store, settings.store.keep_images_days))


def sampling_loop(
    model: ModelSettings,
    backbone_client: BackboneClient,
    judge_client: JudgeClient,
    observe: Observer = lambda plan, verdict, score: None,
) -> SamplingLoop:
    """The sampling loop of a model."""
    timeout_s, ahead = model.judge.timeout_s, model.backbone.speculative_draws
    return SamplingLoop(backbone_client, judge_client, timeout_s, observe, ahead)
