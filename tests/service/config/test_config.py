from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from service.config import (
    AuthSettings,
    ConfigError,
    Settings,
    StoreSettings,
    check_bind,
    is_loopback,
    secrets,
    store_urls,
    url_of,
)
from tests.bundles import settings

KEY = {"name": "ops", "secret_env": "OPS_KEY", "scopes": ["generate"]}


def _faults(document: dict[str, Any]) -> list[str]:
    """The paths that the configuration is refused for, with the reason."""
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate(document)
    return [
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in refusal.value.errors()
    ]


def _with(path: str, value: Any) -> dict[str, Any]:
    """A good configuration with one value set at a dotted path."""
    document = copy.deepcopy(settings("tiny"))
    document["auth"]["keys"] = [dict(KEY)]
    here: Any = document
    *parents, last = path.split(".")
    for part in parents:
        here = here[int(part)] if part.isdecimal() else here.setdefault(part, {})
    here[last] = value
    return document


def test_the_configuration_of_these_tests_is_good() -> None:
    Settings.model_validate(_with("ingress_metrics", True))


@pytest.mark.parametrize(
    "path",
    [
        "colour",
        "models.tiny.colour",
        "models.tiny.backbone.colour",
        "models.tiny.backbone.replicas.colour",
        "models.tiny.judge.colour",
        "models.tiny.judge.replicas.colour",
        "policies.bright.colour",
        "auth.colour",
        "auth.keys.0.colour",
        "limits.colour",
        "store.colour",
        "ingress.colour",
    ],
)
def test_an_unknown_key_anywhere_stops_with_its_path(path: str) -> None:
    assert _faults(_with(path, 1)) == [f"{path}: Extra inputs are not permitted"]


@pytest.mark.parametrize(
    ("path", "value", "where", "reason"),
    [
        ("policies.bright.model", "other", "", "policies.bright.model: 'other' is not among"),
        ("models.spare", {"bundle": "b"}, "", "models.spare: no policy is for it"),
        ("default_policy", "other", "", "'other' is not among policies"),
        ("default_policy", "none", "", "must censor"),
        ("policies.bright.eta", 1.5, "policies.bright.eta", "less than or equal to 1"),
        ("policies.bright.max_draws", 0, "policies.bright.max_draws", "greater than or equal"),
        ("policies.bright.threshold", 1.0, "policies.bright.threshold", "less than 1"),
        ("policies.bright.num_inference_steps", [], "policies.bright", "at least 1 item"),
        ("policies.bright.num_inference_steps", [0], "policies.bright", "greater than or equal"),
        ("policies.bright.guide_interval", [500, 500], "policies.bright", "guide_interval"),
        ("policies.none.censor_scale", 1.0, "policies.none", "needs a reward"),
        ("policies.none.max_draws", 2, "policies.none", "needs a reward"),
        ("policies.bright.trained", True, "policies.bright", "give one of them"),
        (
            "policies.none",
            {"model": "tiny", "trained": True, "threshold": 0.5},
            "policies.none",
            "comes with the reward",
        ),
        ("policies.Bad Name", {"model": "tiny"}, "policies", "match pattern"),
        ("models.tiny.backbone.device", "gpu", "models.tiny.backbone.device", "match pattern"),
        ("models.tiny.backbone.runtime", "jax", "models.tiny.backbone.runtime", "'onnx' or"),
        (
            "models.tiny.backbone",
            {"prompt_overflow": "refuse", "prompt_chunks": 4},
            "models.tiny.backbone",
            "prompt_chunks: needs prompt_overflow: chunk",
        ),
        ("models.tiny.backbone.prompt_overflow", "cut", "models.tiny.backbone", "'chunk' or"),
        ("auth.keys.0.secret_env", "sk-secret-value", "auth.keys.0.secret_env", "match pattern"),
        ("auth.keys.0.scopes", ["root"], "auth.keys.0.scopes", "'generate', 'scores'"),
        ("auth.keys", [KEY, KEY], "auth", "names must differ"),
        ("auth.anonymous_scopes", ["admin"], "auth", "must not hold admin"),
        ("auth", {"anonymous": False}, "auth", "nobody could call"),
        ("auth.keys.0.name", "anonymous", "auth.keys.0.name", "without a key"),
        ("limits.deadline_s", 601, "limits", "must not exceed max_deadline_s"),
    ],
)
def test_a_value_out_of_range_stops_with_its_path(
    path: str, value: Any, where: str, reason: str
) -> None:
    faults = _faults(_with(path, value))
    assert any(fault.startswith(where) and reason in fault for fault in faults), faults


@pytest.mark.parametrize(
    "path",
    [
        "limits.head_s",
        "limits.body_s",
        "limits.deadline_s",
        "limits.max_deadline_s",
        "models.tiny.judge.timeout_s",
        "models.tiny.judge.replicas.health_check_period_s",
        "models.tiny.backbone.replicas.health_check_timeout_s",
        "feedback.session_hours",
    ],
)
@pytest.mark.parametrize("value", [1e-6, 0.099, 5e-324])
def test_a_time_in_which_nothing_can_be_done_is_refused(path: str, value: float) -> None:
    faults = _faults(_with(path, value))
    assert any(path in fault and "greater than or equal to 0.1" in fault for fault in faults)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("localhost", "http://localhost:80"),
        ("::1", "http://[::1]:80"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:80"),
    ],
)
def test_a_url_has_an_ipv6_address_in_brackets(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_the_configuration_cannot_be_changed_afterwards() -> None:
    loaded = Settings.model_validate(settings("tiny"))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(loaded.policies["bright"], "threshold", 0.0)  # noqa: B010


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_anonymous_access_is_fine_on_loopback(host: str) -> None:
    check_bind(Settings.model_validate(settings("tiny", ingress_metrics=True)), host)
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.com", "", None])
def test_anonymous_access_is_refused_anywhere_else(host: str | None) -> None:
    with pytest.raises(ConfigError, match=r"auth\.anonymous: refused"):
        check_bind(Settings.model_validate(settings("tiny")), host)
    keyed = settings("tiny", auth={"keys": [KEY]})
    check_bind(Settings.model_validate(keyed), host)
    with pytest.raises(ConfigError, match="ingress_metrics: refused"):
        check_bind(Settings.model_validate(keyed | {"ingress_metrics": True}), host)


def _auth(*names: str) -> AuthSettings:
    keys = [{"name": name, "secret_env": f"{name.upper()}_KEY", "scopes": ["generate"]}
            for name in names]  # fmt: skip
    return AuthSettings.model_validate({"keys": keys})


def test_secrets_come_from_the_environment() -> None:
    environment = {"OPS_KEY": "x" * 16, "WEB_KEY": "y" * 40}
    found = secrets(_auth("ops", "web"), environment)
    assert {secret: key.name for secret, key in found.items()} == {"x" * 16: "ops", "y" * 40: "web"}


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"OPS_KEY": "x" * 16}, r"auth\.keys\.1: environment variable WEB_KEY"),
        ({"OPS_KEY": "x" * 16, "WEB_KEY": ""}, r"auth\.keys\.1: .*16 characters"),
        ({"OPS_KEY": "x" * 16, "WEB_KEY": "hunter2" * 2}, r"auth\.keys\.1: .*16 characters"),
        ({"OPS_KEY": "x" * 16, "WEB_KEY": "x" * 16}, r"auth\.keys\.1: .*WEB_KEY repeats"),
    ],
    ids=["missing", "empty", "short", "duplicate"],
)
def test_a_secret_that_is_missing_short_or_duplicate_stops_the_start(
    environment: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as refusal:
        secrets(_auth("ops", "web"), environment)
    # The fault is shown and logged: it names the variable and never what it holds.
    assert "hunter2" not in str(refusal.value)
    assert "xxxx" not in str(refusal.value)


def test_the_store_is_in_the_users_state_folder_unless_told_otherwise() -> None:
    default = store_urls(StoreSettings(), {"XDG_STATE_HOME": "/state"})
    assert default == ("sqlite:////state/winnow/decisions.sqlite", "/state/winnow/blobs")
    assert store_urls(StoreSettings(), {})[0].endswith("/.local/state/winnow/decisions.sqlite")
    told = StoreSettings(url="sqlite:////x", blobs_url="s3://bucket/winnow")
    assert store_urls(told, {}) == ("sqlite:////x", "s3://bucket/winnow")


def test_an_example_s_secret_stops_the_start() -> None:
    environment = {"OPS_KEY": "example-admin-key-change-me", "WEB_KEY": "w" * 16}
    with pytest.raises(ConfigError, match="everybody knows"):
        secrets(_auth("ops", "web"), environment)


def test_a_store_url_with_a_secret_comes_from_the_environment() -> None:
    store = StoreSettings(url_env="STORE_URL")
    found = store_urls(store, {"STORE_URL": "postgresql://u:p@h/d"})
    assert found[0] == "postgresql://u:p@h/d"
    with pytest.raises(ConfigError, match="STORE_URL"):
        store_urls(store, {})


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@h/d", "postgresql://:p@h/d", "postgresql://h/d?sslpassword=p"],
)
def test_a_password_in_the_configuration_is_refused(url: str) -> None:
    assert "must hold no password" in _faults(_with("store.url", url))[0]


def test_a_store_has_one_place() -> None:
    assert "give one of them" in _faults(_with("store", {"url": "sqlite:////x", "url_env": "X"}))[0]


@pytest.mark.parametrize("days", [0, -1, 1.5])
def test_records_are_kept_for_whole_days(days: float) -> None:
    assert _faults(_with("store.keep_days", days))[0].startswith("store.keep_days:")


@pytest.mark.parametrize(
    ("aliases", "said"),
    [
        ({"a": ["b"]}, "models.a.aliases: 'b' names a model already"),
        ({"a": ["a"]}, "'a' names a model already"),
        ({"a": ["x"], "b": ["x"]}, "models.b.aliases: 'x' names a model already"),
        ({"a": ["x", "x"]}, "'x' names a model already"),
        ({"a": ["GPT Image"]}, "models.a.aliases.0"),
    ],
)
def test_an_alias_names_one_model(aliases: dict[str, list[str]], said: str) -> None:
    given = settings("tiny")
    given["models"] = {
        name: {"bundle": name, "aliases": aliases.get(name, [])} for name in ("a", "b")
    }
    given["policies"] = {name: {"model": name, "reward": "bright"} for name in ("a", "b")}
    given["default_policy"] = "a"
    with pytest.raises(ValidationError) as refusal:
        Settings.model_validate(given)
    assert said in str(refusal.value)


def test_a_model_is_found_by_its_name_and_its_aliases() -> None:
    given = settings("tiny")
    given["models"]["tiny"]["aliases"] = ["gpt-image-1"]
    found = Settings.model_validate(given)
    assert [found.model_named(name) for name in ("tiny", "gpt-image-1", "x", "")] == [
        "tiny", "tiny", None, None,
    ]  # fmt: skip
