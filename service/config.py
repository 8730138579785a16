"""The configuration: everything that the service is told.

Read once, frozen, and loud: an unknown key, or a value out of range, stops the start and names its
path. `serve_file` reads it from a file.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.method import Guidance, Method, SamplerName, Spacing

Scope = Literal["generate", "scores", "label", "approve", "admin"]
NAME = "^[a-z0-9][a-z0-9._-]{0,63}$"
NAME_IN_WORDS = (
    "small letters, digits, dots, dashes and underscores alone, beginning with a letter or digit, "
    "64 at most"
)
Name = Annotated[str, Field(pattern=NAME)]
Port = Annotated[int, Field(ge=1, le=65535)]


class ConfigError(ValueError):
    """The configuration cannot be used; the message has a line `path: reason` for each fault."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replicas(_Part):
    """How Ray Serve runs a deployment; the names are Serve's."""

    num_replicas: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(64, ge=1)
    ray_actor_options: dict[str, Any] = {"num_cpus": 1}
    health_check_period_s: float = Field(2.0, gt=0)
    health_check_timeout_s: float = Field(10.0, gt=0)
    graceful_shutdown_wait_loop_s: float = Field(0.2, gt=0)
    graceful_shutdown_timeout_s: float = Field(20.0, ge=0)
    max_replicas_per_node: int | None = Field(None, ge=1, le=100)


class Autoscaling(_Part):
    """How many backbones run: as many as the offered NFE need at this `utilization` of each.

    The load is a mean over `look_back_s`; it has to stay so for the delay before a replica is
    started or stopped.
    """

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(ge=1)
    utilization: float = Field(0.7, gt=0, le=1)
    look_back_s: float = Field(30.0, gt=0)
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not exceed max_replicas")
        return self


class BackboneReplicas(Replicas):
    """A backbone's replicas: a fixed number, or as many as the load needs."""

    # The engine itself refuses what would wait too long; Serve must not hide it in a queue.
    max_ongoing_requests: int = Field(1024, ge=1)
    autoscaling: Autoscaling | None = None

    @model_validator(mode="after")
    def _one_way(self) -> BackboneReplicas:
        if self.autoscaling is not None and "num_replicas" in self.model_fields_set:
            raise ValueError("num_replicas and autoscaling: give one of them")
        return self


class BackboneSettings(_Part):
    """The denoiser's runtime. `threads` is per replica; `max_batch` is the number of slots.

    An autoencoder decodes `decode_batch` finished draws at a time, beside the steps of others.
    `speculative_draws` are asked for beside each image's own, and made where there is room.
    `forward_guidance` loads what policies with `guidance: forward` need beside it: the denoiser in
    torch, for gradients through it.
    """

    runtime: Literal["onnx", "torch"] = "onnx"
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    threads: int = Field(1, ge=1)
    forward_guidance: bool = False
    max_batch: int = Field(16, ge=1, le=1024)
    decode_batch: int = Field(4, ge=1, le=64)
    max_waiting: int = Field(256, ge=1)
    speculative_draws: int = Field(0, ge=0, le=8)
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
            raise ValueError("compile_mode and dtype need runtime: torch")
        return self


class JudgeSettings(_Part):
    """The judge's runtime: ONNX Runtime. `timeout_s` ends a request with censor_unavailable."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1)
    max_batch: int = Field(64, ge=1)
    timeout_s: float = Field(10.0, gt=0)
    replicas: Replicas = Replicas()


class ModelSettings(_Part):
    """A bundle to serve: the name of a shipped one, or a folder."""

    bundle: str
    backbone: BackboneSettings = BackboneSettings()
    judge: JudgeSettings = JudgeSettings()


class PolicySettings(_Part):
    """How requests under this policy are censored.

    `reward` names a reward of the model's bundle; without one the policy censors nothing and only
    the admin scope may use it. With `trained` its reward comes from labels: until a version with
    one is promoted, it refuses every request. `censor_scale` above 0 steers, by the gradient that
    `guidance` names, where the timestep lies in `guide_interval`; there `recurrences` and
    `backward_steps` apply too. `probes` are the shares of the steps after which hopeless draws are
    stopped. `num_inference_steps` lists what callers may ask for, the default first. `threshold`
    overrides the bundle's calibration, in words that an auditor will see.

    `guidance_scale` lists what callers may ask for, the default first; empty means the bundle's
    own. `class_labels` are the classes that may be asked for, and of which one is drawn where none
    is; empty means all.
    """

    model: Name
    version: int = Field(1, ge=1)
    reward: Name | None = None
    trained: bool = False
    censor_scale: float = Field(0.0, ge=0, le=20)
    guide_interval: tuple[int, int] = (0, 1000)
    threshold: float | None = Field(None, gt=0, lt=1)
    max_draws: int = Field(1, ge=1, le=1000)
    num_inference_steps: list[Annotated[int, Field(ge=1, le=1000)]] = Field([50], min_length=1)
    eta: float = Field(0.0, ge=0, le=1)
    sampler: SamplerName = "ddim"
    timestep_spacing: Spacing | None = None
    guidance: Guidance = "time"
    recurrences: int = Field(1, ge=1, le=16)
    backward_steps: int = Field(0, ge=0, le=100)
    backward_rate: float = Field(0.001, gt=0, le=1)
    probes: list[Annotated[float, Field(gt=0, lt=1)]] = []
    classifier_scale: float = Field(0.0, ge=0, le=50)
    guidance_scale: list[Annotated[float, Field(ge=1, le=50)]] = []
    class_labels: list[Annotated[int, Field(ge=0)]] = []

    @property
    def judged(self) -> bool:
        """Whether nothing may leave without a verdict."""
        return self.reward is not None or self.trained

    def method(self, num_inference_steps: int) -> Method:
        """How draws of this policy are made with so many steps."""
        shared = {field.name for field in fields(Method)} - {"num_inference_steps", "probes"}
        return Method(
            num_inference_steps=num_inference_steps,
            probes=tuple(self.probes),
            **{name: getattr(self, name) for name in shared},
        )

    @model_validator(mode="after")
    def _consistent(self) -> PolicySettings:
        low, high = self.guide_interval
        if not 0 <= low < high <= 1000:
            raise ValueError("guide_interval must be [low, high) with 0 <= low < high <= 1000")
        if self.trained and self.reward is not None:
            raise ValueError("reward and trained: give one of them")
        if self.trained and self.threshold is not None:
            raise ValueError("threshold comes with the reward that is trained: leave it out")
        for name in ("censor_scale", "threshold", "backward_steps", "probes"):
            if not self.judged and getattr(self, name):
                raise ValueError(f"{name} needs a reward")
        if self.recurrences > 1 and not self.censor_scale and not self.backward_steps:
            raise ValueError("recurrences above 1 need censor_scale or backward_steps")
        if self.sampler != "ddim" and self.eta:
            raise ValueError("eta belongs to sampler: ddim")
        if sorted(set(self.probes)) != self.probes:
            raise ValueError("probes must rise")
        if self.probes and self.threshold is not None:
            raise ValueError("threshold stands in for a calibration, which probes need")
        if not self.judged and self.max_draws > 1:
            raise ValueError("max_draws above 1 needs a reward: nothing is ever rejected")
        return self


class KeySettings(_Part):
    """An API key: the environment variable that holds it, never the key itself."""

    name: Name
    secret_env: str = Field(pattern="^[A-Z][A-Z0-9_]*$")
    scopes: list[Scope] = Field(min_length=1)


class AuthSettings(_Part):
    """Who may call. Anonymous access is refused unless the server listens on loopback."""

    anonymous: bool = False
    anonymous_scopes: list[Scope] = ["generate"]
    keys: list[KeySettings] = []

    @model_validator(mode="after")
    def _someone(self) -> AuthSettings:
        if not self.anonymous and not self.keys:
            raise ValueError("nobody could call: give keys, or anonymous: true on loopback")
        if "admin" in self.anonymous_scopes:
            raise ValueError("anonymous_scopes must not hold admin")
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("keys: names must differ")
        return self


class Limits(_Part):
    """What a caller may ask for. Times in seconds."""

    n: int = Field(16, ge=1)
    body_bytes: int = Field(1_048_576, ge=1024)
    prompt_chars: int = Field(4000, ge=0)
    moderation_inputs: int = Field(32, ge=1)
    deadline_s: float = Field(120.0, gt=0)
    max_deadline_s: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        if self.deadline_s > self.max_deadline_s:
            raise ValueError("deadline_s must not exceed max_deadline_s")
        return self


class StoreSettings(_Part):
    """Where decisions, labels, rewards and policies are kept, and for how long.

    `url` is SQLAlchemy's; one with a password stands in the environment variable `url_env`.
    `blobs_url` is fsspec's. `keep_days` is for decisions, `keep_images_days` for images that were
    shown for labelling; labels stay.
    """

    url: str | None = None
    url_env: str | None = Field(None, pattern="^[A-Z][A-Z0-9_]*$")
    blobs_url: str | None = None
    keep_days: int = Field(30, ge=1, le=36_500)
    keep_images_days: int = Field(365, ge=1, le=36_500)
    keep_prompts: bool = False

    @model_validator(mode="after")
    def _one_place_and_no_secret(self) -> StoreSettings:
        if self.url is not None and self.url_env is not None:
            raise ValueError("url and url_env: give one of them")
        if self.url is not None and re.search(r"://[^:/]*:[^@]*@|[?&]\w*password=", self.url):
            raise ValueError("url must hold no password: put the URL into url_env's variable")
        return self


class FeedbackSettings(_Part):
    """Labelling and training beside the service.

    `candidates` are drawn for each image that is shown, once there are labels to choose by.
    `threads` bound a training. With `self_approval`, whoever trained a reward may promote it.
    """

    enabled: bool = False
    session_hours: float = Field(12.0, gt=0, le=720)
    threads: int = Field(1, ge=1)
    candidates: int = Field(8, ge=1, le=16)
    self_approval: bool = False
    replicas: Replicas = Replicas(ray_actor_options={"num_cpus": 0})


class CertificateSettings(_Part):
    """Evidence of certificates: who signs it.

    `signing_key_env` names the environment variable with 32 random bytes in base64. Without it the
    key is a file that is made once beside the store.
    """

    signing_key_env: str | None = Field(None, pattern="^[A-Z][A-Z0-9_]*$")


class Settings(_Part):
    """Everything that the service is told: the `args` of its application.

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
    metrics_ports: tuple[Port, Port] | None = None
    ingress: Replicas = Replicas(max_ongoing_requests=256)

    @model_validator(mode="after")
    def _references(self) -> Settings:
        if self.metrics_ports is not None and self.metrics_ports[0] > self.metrics_ports[1]:
            raise ValueError("metrics_ports: the first must not exceed the last")
        for name, policy in self.policies.items():
            if policy.model not in self.models:
                raise ValueError(f"policies.{name}.model: {policy.model!r} is not among models")
        for name in self.models:
            if all(policy.model != name for policy in self.policies.values()):
                raise ValueError(f"models.{name}: no policy is for it: add one, or leave it out")
        default = self.policies.get(self.default_policy)
        if default is None:
            raise ValueError(f"default_policy: {self.default_policy!r} is not among policies")
        if not default.judged:
            raise ValueError("default_policy must censor: it is what callers get who name none")
        return self


def check_bind(settings: Settings, host: str | None) -> None:
    """Refuse what is for one machine alone on an address that others can reach.

    Raises ConfigError.
    """
    if is_loopback(host):
        return
    for path, wanted in (
        ("auth.anonymous", settings.auth.anonymous),
        ("ingress_metrics", settings.ingress_metrics),
        ("feedback.self_approval", settings.feedback.self_approval),
    ):
        if wanted:
            raise ConfigError(
                f"{path}: refused, since the server listens on {host!r}, not on loopback. "
                "Set it to false (with auth.keys), or http_options.host: 127.0.0.1"
            )


def is_loopback(host: str | None) -> bool:
    """True only for addresses that no other machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def secrets(auth: AuthSettings, environment: Mapping[str, str]) -> dict[str, KeySettings]:
    """Each key's secret, read from the environment. Raises ConfigError if one is missing."""
    found: dict[str, KeySettings] = {}
    for index, key in enumerate(auth.keys):
        secret = environment.get(key.secret_env, "")
        if len(secret) < 16:
            raise ConfigError(
                f"auth.keys.{index}: environment variable {key.secret_env} must hold a key of 16 "
                "characters or more"
            )
        if "change-me" in secret:
            raise ConfigError(
                f"auth.keys.{index}: {key.secret_env} still holds the example's key, which "
                "everybody knows: put one of your own there"
            )
        if secret in found:
            raise ConfigError(f"auth.keys.{index}: {key.secret_env} repeats another key")
        found[secret] = key
    return found


def store_urls(store: StoreSettings, environment: Mapping[str, str]) -> tuple[str, str]:
    """The URLs of the store's database and its blobs. Raises ConfigError for a missing variable.

    The defaults lie in the user's state folder: replicas do not share a working folder, and what is
    kept must outlive a clone and its build.
    """
    url = store.url or f"sqlite:///{state_folder(environment)}/decisions.sqlite"
    if store.url_env is not None:
        url = environment.get(store.url_env, "")
        if not url:
            raise ConfigError(
                f"store.url_env: environment variable {store.url_env} must hold a URL"
            )
    return url, blobs_url(store, environment)


def blobs_url(store: StoreSettings, environment: Mapping[str, str]) -> str:
    """The URL of the store's blobs alone: backbones and judges need no database."""
    return store.blobs_url or str(state_folder(environment) / "blobs")


def state_folder(environment: Mapping[str, str]) -> Path:
    """Where this user's Winnow keeps what it must not lose."""
    state = environment.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser().absolute() / "winnow"
