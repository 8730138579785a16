"""The real API on a real socket: FastAPI, uvicorn, router, engine. No Ray, no weights."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.types import ASGIApp, Receive, Scope, Send
from torch import Tensor

from models.bundle import Bundle
from models.codec import PixelShuffle
from models.method import Method
from service.api.app import create_app
from service.api.context import Context
from service.canary import Canaries
from service.certificates.certified import Certified
from service.config import Settings, secrets
from service.encode import from_png
from service.engine.loop import EngineLoop
from service.errors import WinnowError
from service.feedback.desk import Desk, Subject, uncensored
from service.live import Live
from service.local import LocalBackends
from service.metrics.backbone import BackboneMetrics
from service.metrics.ingress import IngressMetrics
from service.metrics.page import merge, render
from service.pinning import pin
from service.policy import Policy
from service.ports import Drawer, Pixels
from service.reward import Judges
from service.router import Router
from service.shadow import Shadows
from service.store.recorder import Recorder
from service.store.store import Store
from service.weights import Weights
from tests.bundles import HEIGHT, WIDTH, settings
from tests.engines import make_engine, make_schedule
from tests.feedback import Selection, Training
from tests.gaussian import Gaussian
from tests.stores import open_store

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

    `warmed` are the policies whose networks were brought in; `cold` is why that fails.
    """

    url: str
    judge: Brightness
    backbone: Backbone
    backends: LocalBackends
    store: Store
    recorder: Recorder
    live: Live
    settings: Settings
    app: FastAPI
    certified: Certified
    desk: Desk
    training: Training
    warmed: list[Policy] = field(default_factory=list)
    cold: WinnowError | None = None
    paths: list[str] = field(default_factory=list)


@contextmanager
def serve(
    bundle: Bundle,
    max_batch: int = 8,
    max_waiting: int = 64,
    drawer: Drawer | None = None,
    **changes: Any,
) -> Iterator[Served]:
    """Serve a configuration with `changes` until the block ends; `drawer` instead of the engine."""
    config = Settings.model_validate(
        settings(str(bundle.folder), ingress_metrics=True, auth=AUTH, feedback={"enabled": True})
        | changes
    )
    judge_timeout_s = config.models["tiny"].judge.timeout_s
    policies = pin(config, {"tiny": bundle})
    schedule = make_schedule("v_prediction")
    judge, backbone = Brightness(), Backbone(Gaussian(schedule, 0.0, 0.4))
    backbone_metrics, metrics = BackboneMetrics("tiny", max_batch), IngressMetrics()
    engine = make_engine(
        backbone,
        schedule,
        (4, HEIGHT // 2, WIDTH // 2),
        max_batch=max_batch,
        codec=PixelShuffle(2),
        backbone=policies["bright"].backbone,
    )
    engine._meter = backbone_metrics
    loop = EngineLoop(engine, max_waiting)
    backbone_metrics.watch(lambda: loop.running, lambda: loop.waiting, lambda: loop.capacity)
    judge_name = policies["bright"].judge
    assert judge_name is not None
    # A page that is drawn ahead may still be written when the test is over.
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    store = open_store(f"sqlite:///{folder.name}/decisions.sqlite")
    weights = Weights(bundle, f"{folder.name}/blobs")

    def open_judge(path: Path) -> Dimmed:
        return Dimmed(judge, float(path.read_text()))

    judges = Judges({judge_name: judge}, (HEIGHT, WIDTH, 1), weights.find, open_judge)
    backends = LocalBackends(loop, judges)

    async def gather_metrics() -> str:
        registries = {"ingress": metrics.registry, "backbone": backbone_metrics.registry}
        return merge((name, render(registry)) for name, registry in registries.items())

    async def score_one(model: str, judge: str, pixels: Pixels) -> Sequence[float]:
        return await backends.score(model, judge, [pixels], 10)

    recorder = Recorder(store.decisions, keep_days=30)
    live = Live(store, policies, poll_s=0.1)
    metrics.watch(lambda: live.policies)

    async def warm(policy: Policy) -> None:
        if served.cold is not None:
            raise served.cold
        await backends.load(policy.settings.model, policy.networks)
        served.warmed.append(policy)

    certified = Certified(
        store.certificates,
        config,
        {"tiny": bundle.manifest},
        lambda: live.policies,
        metrics.certificates,
    )
    routers = {"tiny": Router(drawer or backends, backends, judge_timeout_s, metrics.draw)}
    training = Training()
    desk = Desk(
        store=store,
        routers=routers,
        subjects={
            "tiny": Subject(
                uncensored("tiny", policies["bright"].backbone, Method(10)),
                (HEIGHT, WIDTH, 1),
                lambda condition: condition,
                lambda name: bundle.path(f"features/{name}.onnx"),
                bundle.manifest.backbone.inputs,
            )
        },
        policy=live.known,
        candidates=2,
        within=timedelta(hours=1),
        deadline_s=30,
        training=training,
        selection=Selection(),
    )
    context = Context(
        settings=config,
        manifests={"tiny": bundle.manifest},
        live=live,
        keys=secrets(config.auth, KEYS),
        routers=routers,
        drawer=drawer or backends,
        scorer=backends,
        warm=warm,
        shadows=Shadows(backends, metrics.shadow, metrics.shadow_dropped),
        store=store,
        recorder=recorder,
        metrics=metrics,
        certified=certified,
        canaries=Canaries(
            score_one,
            lambda: live.policies,
            lambda model, name: from_png(weights.find(name, ".png").read_bytes()),
            metrics.canaries,
            every_s=0.1,
        ),
        gather_metrics=gather_metrics,
        desk=desk if config.feedback.enabled else None,
    )
    app = create_app(context)
    served = Served(
        "", judge, backbone, backends, store, recorder, live, config, app, certified, desk, training
    )
    with _listen(_counted(served.app, served.paths)) as served.url:
        try:
            yield served
        finally:
            loop.close()
            live.close()
            recorder.close()
            certified.close()
            store.close()
            folder.cleanup()


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
