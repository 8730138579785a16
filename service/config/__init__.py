"""The configuration.

Read once and frozen. An unknown key, a value of another type or out of range stops the start with
a message that names its path. `serve_file` reads a file, `preflight` compares it with the machine.
"""

from service.config.auth import ANONYMOUS, AuthSettings, Caller, KeySettings, Scope, secrets
from service.config.base import NAME, NAME_IN_WORDS, ConfigError, Name, Part, Port
from service.config.policy import PolicySettings
from service.config.replicas import ActorOptions, Autoscaling, BackboneReplicas, Replicas
from service.config.settings import (
    BackboneSettings,
    CertificateSettings,
    FeedbackSettings,
    JudgeSettings,
    Limits,
    ModelSettings,
    Settings,
    check_bind,
    is_loopback,
    url_of,
)
from service.config.store import StoreSettings, blobs_url, state_folder, store_urls

__all__ = [
    "ANONYMOUS",
    "NAME",
    "NAME_IN_WORDS",
    "ActorOptions",
    "AuthSettings",
    "Autoscaling",
    "BackboneReplicas",
    "BackboneSettings",
    "Caller",
    "CertificateSettings",
    "ConfigError",
    "FeedbackSettings",
    "JudgeSettings",
    "KeySettings",
    "Limits",
    "ModelSettings",
    "Name",
    "Part",
    "PolicySettings",
    "Port",
    "Replicas",
    "Scope",
    "Settings",
    "StoreSettings",
    "blobs_url",
    "check_bind",
    "is_loopback",
    "secrets",
    "state_folder",
    "store_urls",
    "url_of",
]
