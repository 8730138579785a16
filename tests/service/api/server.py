"""The real API on a real socket: FastAPI, uvicorn, sampling loop, engine. No Ray, no weights."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.types import ASGIApp, Receive, Scope, Send
from torch import Tensor

from models.bundles.bundle import Bundle
from models.diffusion.codec import PixelShuffle
from models.diffusion.method import Method
from service.api.app import create_app
from service.certificates.coverage import CertificateCoverage
from service.config import Settings, blobs_url
from service.engine.loop import EngineLoop
from service.errors import WinnowError
from service.judge.judges import Judges
from service.labelling.reward_training import RewardTraining
from service.labelling.service import LabellingService
from service.labelling.subject import Subject, uncensored
from service.metrics.backbone import BackboneMetrics
from service.metrics.exposition import render
from service.metrics.ingress import IngressMetrics
from service.policies.registry import PolicyRegistry
from service.policies.seeding import configured_policies
from service.policies.weights import Weights
from service.ports import BackboneClient, Pixels
from service.serving.assemble import Backends, assemble
from service.serving.in_process import InProcessBackends
from service.store.recorder import Recorder
from service.store.store import Store
from tests.bundles import HEIGHT, WIDTH, settings
from tests.engines import make_engine, make_schedule
from tests.feedback import Training, choose
from tests.gaussian import Gaussian
from tests.service.api.conformance import Conformance

KEYS = {
    "PLAIN_KEY": "wn-plain-0123456789",
    "SCORES_KEY": "wn-scores-0123456789",
    "ADMIN_KEY": "wn-admin-0123456789",
    "LABEL_KEY": "wn-label-0123456789",
    "APPROVE_KEY": "wn-approve-0123456789",
    "REVIEW_KEY": "wn-review-0123456789",
}
AUTH = {
    "anonymous": False,
    "keys": [
        {"name": "plain", "secret_env": "PLAIN_KEY", "scopes": ["generate"]},
        {"name": "scores", "secret_env": "SCORES_KEY", "scopes": ["generate", "scores"]},
        {"name": "admin", "secret_env": "ADMIN_KEY", "scopes": ["admin"]},
        {"name": "label", "secret_env": "LABEL_KEY", "scopes": ["label"]},
        {"name": "approve", "secret_env": "APPROVE_KEY", "scopes": ["approve"]},
        {"name": "review", "secret_env": "REVIEW_KEY", "scopes": ["label", "approve"]},
    ],
}


@dataclass
class Brightness:
    """A judge whose reward is the brightness of the first pixel; a test may break it.

    A `fault` comes after so many `good_calls`.
    """

    fault: Exception | None = None
    answer: float | None = None
    delay_s: float = 0.0
    good_calls: int = 0

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        time.sleep(self.delay_s)
        self.good_calls -= 1
        if self.fault and self.good_calls < 0:
            raise self.fault
        if self.answer is not None:
            return np.full(len(pixels), self.answer)
        return np.asarray(pixels[:, 0, 0, 0] / 255, dtype=np.float64)


@dataclass
class Dimmed:
    """A judge from a file, which holds a number: so many times what another judge says."""

    judge: Brightness
    factor: float

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return self.factor * self.judge.score(pixels)


@dataclass
class Backbone:
    """A Gaussian world whose steps a test may slow down."""

    world: Gaussian
    delay_s: float = 0.0

    def __call__(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        time.sleep(self.delay_s)
        return self.world(x_t, timestep)


@dataclass
class Served:
    """A running server, and the parts of it that a test may look at or break.

    `loaded` are the networks that were brought in, policy by policy; `cold` is why that fails.
    """

    url: str
    judge: Brightness
    backbone: Backbone
    backends: InProcessBackends
    store: Store
    recorder: Recorder
    policy_registry: PolicyRegistry
    settings: Settings
    app: FastAPI
    certified: CertificateCoverage
    labelling: LabellingService
    training: Training
    trainings: RewardTraining
    loaded: list[Mapping[str, str]] = field(default_factory=list)
    cold: WinnowError | None = None
    paths: list[str] = field(default_factory=list)


@contextmanager
def serve(
    bundle: Bundle,
    max_batch: int = 8,
    max_waiting: int = 64,
    backbone_client: BackboneClient | None = None,
    folder: Path | None = None,
    **changes: Any,
) -> Iterator[Served]:
    """Serve a configuration with `changes` until the block ends; `backbone_client` instead of the
    engine, and its store in `folder` instead of one that goes with it."""
    config = Settings.model_validate(
        settings(str(bundle.folder), ingress_metrics=True, auth=AUTH, feedback={"enabled": True})
        | changes
    )
    policies = configured_policies(config, {"tiny": bundle})
    schedule = make_schedule("v_prediction")
    judge, backbone = Brightness(), Backbone(Gaussian(schedule, 0.0, 0.4))
    backbone_metrics = BackboneMetrics("tiny", max_batch)
    engine = make_engine(
        backbone,
        schedule,
        (4, HEIGHT // 2, WIDTH // 2),
        max_batch=max_batch,
        codec=PixelShuffle(2),
        backbone=policies["bright"].backbone.weights,
        meter=backbone_metrics,
        sizes=bundle.x_t_shapes,
    )
    loop = EngineLoop(engine, max_waiting)
    backbone_metrics.watch(lambda: loop.running, lambda: loop.waiting, lambda: loop.capacity)
    judge_name = policies["bright"].judge
    assert judge_name is not None
    # A page that is drawn ahead may still be written when the test is over.
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    environment = KEYS | {"XDG_STATE_HOME": str(folder or temporary.name)}
    weights = Weights(bundle, blobs_url(config.store, environment))

    def open_judge(path: Path) -> Dimmed:
        return Dimmed(judge, float(path.read_text()))

    image = bundle.manifest.backbone.image
    others = [(*size, image[2]) for size in bundle.manifest.backbone.other_sizes]
    judges = Judges({judge_name: judge}, image, weights.find, open_judge, others)
    in_process = InProcessBackends(loop, judges)

    async def scores(model: str, judge: str, pixels: Pixels) -> Sequence[float]:
        return await in_process.score(model, judge, [pixels], 10)

    async def load(model: str, networks: Mapping[str, str]) -> None:
        if served.cold is not None:
            raise served.cold
        await in_process.load(model, networks)
        served.loaded.append(networks)

    async def pages() -> list[tuple[str, str]]:
        return [("backbone", render(backbone_metrics.registry))]

    service = assemble(
        config,
        {"tiny": bundle},
        Backends(backbone_client or in_process, in_process, scores, load, pages),
        IngressMetrics(),
        environment,
        poll_s=0.1,
        canaries_every_s=0.1,
    )
    context = service.context
    training = Training()
    subjects = {
        "tiny": Subject(
            uncensored("tiny", policies["bright"].backbone.weights, Method(10)),
            bundle.manifest.backbone.image,
            lambda condition: condition,
            lambda name: bundle.path(f"features/{name}.onnx"),
            bundle.manifest.backbone.inputs,
        )
    }
    known = context.policy_registry.known
    labelling = LabellingService(
        store=context.store,
        sampling_loops=context.generation.sampling_loops,
        subjects=subjects,
        policy=known,
        candidates=2,
        within=timedelta(hours=1),
        deadline_s=30,
        training=training,
        choose=choose,
    )
    if config.feedback.enabled:
        context = replace(context, labelling=labelling)
    # Before a test breaks the judge: what was not tried yet decides nothing.
    # In a thread: a test with a browser has an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, context.canaries.look()).result()
    judge.good_calls = 0
    app = create_app(context)
    served = Served(
        "",
        judge,
        backbone,
        in_process,
        context.store,
        context.recorder,
        context.policy_registry,
        config,
        app,
        context.certified,
        labelling,
        training,
        RewardTraining(context.store, subjects, known, training),
    )
    conformance = Conformance(app)
    try:
        with _listen(conformance.wrap(_counted(served.app, served.paths))) as served.url:
            yield served
    finally:
        loop.close()
        service.close()
        temporary.cleanup()
    assert not conformance.faults, "\n".join(conformance.faults)


def _counted(app: FastAPI, paths: list[str]) -> ASGIApp:
    """The app, with the path of each request noted before anything else happens."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
        await app(scope, receive, send)

    return counted


@contextmanager
def _listen(app: ASGIApp) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, name="uvicorn", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            assert time.monotonic() < deadline, "uvicorn did not start in 30 s"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
