"""The settings of each part, and of the whole: the `args` of the application."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from models.diffusion.condition import PROMPT_CHUNKS
from service.config.auth import AuthSettings
from service.config.base import (
    DAY_S,
    NAME,
    SHORTEST_S,
    ConfigError,
    Device,
    Name,
    Part,
    Port,
    Threads,
    Variable,
    refuse_control,
)
from service.config.policy import PolicySettings
from service.config.replicas import ActorOptions, BackboneReplicas, Replicas
from service.config.store import StoreSettings

MOST_METRICS_PORTS = 1000
"""The exporter asks all of them at once, at each scrape."""


def _name_or_absolute_path(bundle: str) -> str:
    refuse_control(bundle)
    if not (Path(bundle).is_absolute() or re.fullmatch(NAME, bundle)):
        raise ValueError(
            f"{bundle!r} must be the name of a shipped bundle, or a folder's absolute path: "
            "replicas do not run in your folder"
        )
    return bundle


class BackboneSettings(Part):
    """The denoiser's runtime. `threads` is per replica; `max_batch` is the number of slots.

    An autoencoder decodes `decode_batch` finished draws at a time, beside the steps of others.
    `speculative_draws` are asked for beside each image's own, and made where there is room.
    `forward_guidance` loads what policies with `guidance: forward` need beside it: the denoiser in
    torch, for gradients through it. A prompt longer than CLIP's text encoders read (77 tokens with
    its two marks) is read in `prompt_chunks` parts at the most, or refused (`prompt_overflow`).
    """

    runtime: Literal["onnx", "torch"] = "onnx"
    device: Device = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    threads: Threads = 1
    forward_guidance: bool = False
    max_batch: int = Field(16, ge=1, le=1024)
    decode_batch: int = Field(4, ge=1, le=64)
    max_waiting: int = Field(256, ge=1, le=1_000_000)
    speculative_draws: int = Field(0, ge=0, le=8)
    prompt_overflow: Literal["chunk", "refuse"] = "chunk"
    prompt_chunks: int = Field(PROMPT_CHUNKS, ge=2, le=64)
    replicas: BackboneReplicas = BackboneReplicas()

    @model_validator(mode="before")
    @classmethod
    def _as_the_device_has_it(cls, given: Any) -> Any:
        """A GPU makes a few rows as fast as one: more slots, and room for speculation."""
        if isinstance(given, dict) and str(given.get("device")).startswith("cuda"):
            return {"max_batch": 64, "speculative_draws": 1} | given
        return given

    @model_validator(mode="after")
    def _belongs_to_torch(self) -> BackboneSettings:
        if self.runtime == "onnx" and (self.compile_mode or self.dtype != "float32"):
            name = "compile_mode" if self.compile_mode else "dtype"
            raise ValueError(f"{name}: compile_mode and dtype need runtime: torch")
        return self

    @model_validator(mode="after")
    def _belongs_to_chunk(self) -> BackboneSettings:
        if self.prompt_overflow == "refuse" and self.prompt_chunks != PROMPT_CHUNKS:
            raise ValueError("prompt_chunks: needs prompt_overflow: chunk")
        return self

    @property
    def most_prompt_chunks(self) -> int:
        """In how many parts a prompt may be read."""
        return 1 if self.prompt_overflow == "refuse" else self.prompt_chunks

    @model_validator(mode="after")
    def _reserved(self) -> BackboneSettings:
        _refuse_hidden(self.device, self.replicas.ray_actor_options)
        return self


class JudgeSettings(Part):
    """The judge's runtime: ONNX Runtime. `timeout_s` ends a request with censor_unavailable."""

    device: Device = "cpu"
    threads: Threads = 1
    max_batch: int = Field(64, ge=1, le=4096)
    timeout_s: float = Field(10.0, ge=SHORTEST_S, le=3600)
    replicas: Replicas = Replicas()

    @model_validator(mode="after")
    def _reserved(self) -> JudgeSettings:
        _refuse_hidden(self.device, self.replicas.ray_actor_options)
        return self


def _refuse_hidden(device: str, options: ActorOptions) -> None:
    """Raises ValueError for a GPU by number that Ray would hide from the replica."""
    number = int(device.partition(":")[2] or 0)
    if options.num_gpus and number >= max(options.num_gpus, 1):
        raise ValueError(
            f"device: {device} needs ray_actor_options.num_gpus above {number}: a replica sees the "
            "GPUs that Ray reserved for it alone, counted from 0"
        )


class ModelSettings(Part):
    """A bundle to serve: the name of a shipped one, or a folder's absolute path.

    `aliases` are other names that callers may ask for it by, such as what their clients say.
    """

    bundle: Annotated[str, AfterValidator(_name_or_absolute_path)]
    aliases: list[Name] = Field([])
    backbone: BackboneSettings = BackboneSettings()
    judge: JudgeSettings = JudgeSettings()


class Limits(Part):
    """What a caller may ask for, and how slowly. Times in seconds.

    A request's head must be there after `head_s`, its body after another `body_s` and a second for
    each MiB of it; a client has as long to take an answer. An address may have
    `connections_per_peer`, all together `connections`, to each ingress.
    """

    n: int = Field(16, ge=1, le=1000)
    body_bytes: int = Field(1_048_576, ge=1024, le=2**30)
    prompt_chars: int = Field(4000, ge=0, le=1_000_000)
    moderation_inputs: int = Field(32, ge=1, le=1000)
    deadline_s: float = Field(120.0, ge=SHORTEST_S, le=7 * DAY_S)
    max_deadline_s: float = Field(600.0, ge=SHORTEST_S, le=7 * DAY_S)
    head_s: float = Field(10.0, ge=SHORTEST_S, le=3600)
    body_s: float = Field(30.0, ge=SHORTEST_S, le=3600)
    connections: int = Field(4096, ge=1, le=1_000_000)
    connections_per_peer: int = Field(512, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        if self.deadline_s > self.max_deadline_s:
            raise ValueError("deadline_s: must not exceed max_deadline_s")
        return self


class FeedbackSettings(Part):
    """Labelling and training beside the service.

    `candidates` are drawn for each image that is shown, once there are labels to choose by.
    `threads` bound a training. With `self_approval`, whoever trained a reward may promote it.
    """

    enabled: bool = False
    session_hours: float = Field(12.0, ge=0.1, le=720)
    threads: Threads = 1
    candidates: int = Field(8, ge=1, le=16)
    self_approval: bool = False
    replicas: Replicas = Replicas(ray_actor_options=ActorOptions(num_cpus=0))


class CertificateSettings(Part):
    """Evidence of certificates: who signs it.

    `signing_key_env` names the environment variable with 32 random bytes in base64. Without it the
    key is a file that is made once beside the store.
    """

    signing_key_env: Variable | None = None


class Settings(Part):
    """All settings: the `args` of the application.

    `ingress_metrics` puts all replicas' metrics on the public route: for a laptop. Of
    `metrics_ports`, first and last, each replica takes one of its machine to export its own.
    """

    models: dict[Name, ModelSettings] = Field(min_length=1)
    policies: dict[Name, PolicySettings] = Field(min_length=1)
    default_policy: Name
    auth: AuthSettings
    limits: Limits = Limits()
    store: StoreSettings = StoreSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    certificates: CertificateSettings = CertificateSettings()
    ingress_metrics: bool = False
    metrics_ports: Annotated[tuple[Port, Port], Field(strict=False)] | None = None
    ingress: Replicas = Replicas(max_ongoing_requests=256)

    @model_validator(mode="after")
    def _references(self) -> Settings:
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        if self.metrics_ports is not None:
            first, last = self.metrics_ports
            if not first <= last < first + MOST_METRICS_PORTS:
                yield (
                    "metrics_ports: the first must not exceed the last, and they must be "
                    f"{MOST_METRICS_PORTS} ports at most"
                )
        for name, policy in self.policies.items():
            if policy.model not in self.models:
                yield f"policies.{name}.model: {policy.model!r} is not among models"
        for name in self.models:
            if all(policy.model != name for policy in self.policies.values()):
                yield f"models.{name}: no policy is for it: add one, or leave it out"
        taken = set(self.models)
        for name, model in self.models.items():
            for alias in model.aliases:
                if alias in taken:
                    yield f"models.{name}.aliases: {alias!r} names a model already"
                taken.add(alias)
        default = self.policies.get(self.default_policy)
        if default is None:
            yield f"default_policy: {self.default_policy!r} is not among policies"
        elif not default.judged:
            yield "default_policy: must censor: it is what callers get who name none"

    def model_named(self, name: str) -> str | None:
        """The model that has this name or this alias; None if none has."""
        if name in self.models:
            return name
        return next((model for model, it in self.models.items() if name in it.aliases), None)

    def deployments(self) -> dict[str, Replicas]:
        """The replicas of each deployment, by their path."""
        found: dict[str, Replicas] = {"ingress": self.ingress}
        if self.feedback.enabled:
            found["feedback.replicas"] = self.feedback.replicas
        for name, model in self.models.items():
            found[f"models.{name}.backbone.replicas"] = model.backbone.replicas
            found[f"models.{name}.judge.replicas"] = model.judge.replicas
        return found


def check_bind(settings: Settings, host: str | None) -> None:
    """Refuse what is for one machine alone on an address that others can reach.

    Raises ConfigError with a line for each.
    """
    if is_loopback(host):
        return
    found = [
        f"{path}: refused, since the server listens on {host!r}, not on loopback. "
        "Set it to false (with auth.keys), or http_options.host: 127.0.0.1"
        for path, wanted in (
            ("auth.anonymous", settings.auth.anonymous),
            ("ingress_metrics", settings.ingress_metrics),
            ("feedback.self_approval", settings.feedback.self_approval),
        )
        if wanted
    ]
    if found:
        raise ConfigError("\n".join(found))


def url_of(host: str, port: int) -> str:
    """The URL of what listens there: an IPv6 address stands in brackets, its zone escaped."""
    shown = f"[{host.replace('%', '%25')}]" if ":" in host else host
    return f"http://{shown}:{port}"


def is_loopback(host: str | None) -> bool:
    """True only for addresses that no other machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
