"""The policies in force: seeded once, read again and again, and never believed for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from models.bundles.bundle import Bundle
from models.bundles.sampling_key import BackboneKey
from service.config import ConfigError, Settings
from service.errors import (
    BackendUnavailable,
    PolicyDisabled,
    PolicyNotFound,
    StoreUnavailable,
)
from service.policies.policy import Policy, to_document
from service.policies.registry import PolicyRegistry
from service.policies.seeding import configured_policies
from service.store.store import Store
from tests.bundles import settings
from tests.processes import wait_for
from tests.stores import open_store


@pytest.fixture
def seeds(bundle: Bundle) -> dict[str, Policy]:
    return configured_policies(
        Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle}
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.sqlite"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def policy_registry(store: Store, seeds: dict[str, Policy]) -> Iterator[PolicyRegistry]:
    """What a test has to read itself."""
    opened = PolicyRegistry(store, seeds, poll_s=3600)
    yield opened
    # Nobody waits for an hour.
    opened._closing.set()


def stricter(seed: Policy, by: float = 0.1) -> dict[str, Any]:
    """A document whose thresholds are higher than the seed's."""
    operating_points = {
        steps: replace(here, threshold=here.threshold + by)
        for steps, here in seed.operating_points.items()
    }
    return to_document(replace(seed, operating_points=operating_points))


def promote(store: Store, document: dict[str, Any], name: str = "bright") -> int:
    number = store.policies.add(name, document, None, "somebody")
    before = store.policies.pointers().get(name)
    store.policies.point(name, before, number, "somebody", "policy.promote")
    return number


def test_an_empty_store_takes_the_configurations_policies(
    policy_registry: PolicyRegistry, seeds: dict[str, Policy], store: Store
) -> None:
    assert dict(policy_registry.policies) == seeds
    assert policy_registry.get("bright") == seeds["bright"]
    assert store.policies.read("bright", 1).created_by == "configuration"
    with pytest.raises(PolicyNotFound, match="there are none, bright"):
        policy_registry.get("other")


def test_a_restart_keeps_what_was_promoted_and_says_where_the_configuration_differs(
    store: Store, seeds: dict[str, Policy], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "winnow.policies"):
        PolicyRegistry(store, seeds).close()
    assert not caplog.records, "nothing differs from what was just seeded"
    promote(store, stricter(seeds["bright"]))
    with caplog.at_level(logging.WARNING, "winnow.policies"):
        again = PolicyRegistry(store, seeds)
        again.close()
    policy = again.get("bright")
    assert policy.version == 2
    assert policy.operating_points[50].threshold == pytest.approx(0.6)
    (record,) = caplog.records
    assert "bright (version 2 is in force): the store wins" in record.getMessage()
    assert "winnow policies promote NAME VERSION`" in record.getMessage()


def test_replicas_may_seed_at_once(url: str, store: Store, seeds: dict[str, Policy]) -> None:
    stores = [open_store(url) for _ in range(6)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for policy_registry in pool.map(lambda one: PolicyRegistry(one, seeds), stores):
            policy_registry.close()
            assert policy_registry.get("bright").version == 1
    assert [entry["action"] for entry in store.policies.history("bright")] == ["policy.seed"]
    for one in stores:
        one.close()


def test_a_name_with_versions_that_were_never_in_force_is_seeded_after_them(
    store: Store, seeds: dict[str, Policy]
) -> None:
    assert store.policies.add("bright", stricter(seeds["bright"]), None, "somebody") == 1
    policy_registry = PolicyRegistry(store, seeds)
    policy_registry.close()
    assert policy_registry.get("bright") == replace(seeds["bright"], version=2)


def test_a_change_is_seen_by_itself(store: Store, seeds: dict[str, Policy]) -> None:
    policy_registry = PolicyRegistry(store, seeds, poll_s=0.05)
    promote(store, stricter(seeds["bright"]))
    wait_for(lambda: policy_registry.get("bright").version == 2)
    store.policies.disable("bright", "somebody")
    wait_for(lambda: "bright" not in policy_registry.policies)
    policy_registry.close()


def test_a_policy_that_was_switched_off_is_refused_in_every_version(
    policy_registry: PolicyRegistry, store: Store, seeds: dict[str, Policy]
) -> None:
    before = policy_registry.pointers["bright"]
    policy_registry.check(before)
    promote(store, stricter(seeds["bright"]))
    policy_registry.refresh()
    policy_registry.check(before)
    store.policies.disable("bright", "somebody")
    policy_registry.refresh()
    with pytest.raises(PolicyDisabled):
        policy_registry.get("bright")
    with pytest.raises(PolicyDisabled):
        policy_registry.check(before)
    policy_registry.get("none")
    assert list(policy_registry.policies) == ["none"]
    assert policy_registry.known("bright").version == 2, "whoever mends it must find it"
    with pytest.raises(PolicyNotFound):
        policy_registry.known("moon")


def test_whoever_mends_a_policy_finds_it_switched_off_and_all(
    policy_registry: PolicyRegistry, store: Store, seeds: dict[str, Policy]
) -> None:
    promote(store, stricter(seeds["bright"]))
    store.policies.disable("bright", "somebody")
    policy_registry.refresh()
    policy_registry.stale_s = 0.0
    assert policy_registry.known("bright").version == 2
    with pytest.raises(PolicyNotFound, match="no policy 'other'"):
        policy_registry.known("other")
    before = store.policies.pointers()["bright"]
    number = store.policies.add("bright", {"colour": "red"}, None, "somebody")
    store.policies.point("bright", before, number, "somebody", "policy.promote")
    policy_registry.refresh()
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        policy_registry.known("bright")


def test_what_could_not_be_read_for_too_long_is_not_believed(
    policy_registry: PolicyRegistry,
) -> None:
    begun = policy_registry.pointers["bright"]
    policy_registry.stale_s = 0.05
    time.sleep(0.06)
    for ask in (lambda: policy_registry.get("bright"), lambda: policy_registry.check(begun)):
        with pytest.raises(StoreUnavailable, match=r"could not be read for 0\.05 s"):
            ask()
    policy_registry.refresh()
    policy_registry.check(begun)


def test_a_reading_counts_from_its_beginning(
    policy_registry: PolicyRegistry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow answer tells of the moment when it was asked for, at best."""
    pointers = store.policies.pointers
    policy_registry.stale_s = 0.05

    def slow() -> Any:
        found = pointers()
        time.sleep(0.1)
        return found

    monkeypatch.setattr(store.policies, "pointers", slow)
    policy_registry.refresh()
    with pytest.raises(StoreUnavailable):
        policy_registry.get("bright")


def test_the_thread_outlives_a_store_that_fails(
    store: Store, seeds: dict[str, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy_registry = PolicyRegistry(store, seeds, poll_s=0.02, stale_s=0.2)
    pointers = store.policies.pointers

    def fail() -> Any:
        raise RuntimeError("anything at all")

    monkeypatch.setattr(store.policies, "pointers", fail)
    time.sleep(0.3)
    with pytest.raises(StoreUnavailable):
        policy_registry.get("bright")
    monkeypatch.setattr(store.policies, "pointers", pointers)
    time.sleep(0.1)
    policy_registry.get("bright")
    policy_registry.close()


def test_a_version_that_cannot_be_read_is_no_version(
    policy_registry: PolicyRegistry,
    store: Store,
    seeds: dict[str, Policy],
    caplog: pytest.LogCaptureFixture,
) -> None:
    promote(store, to_document(seeds["bright"]) | {"colour": "red"})
    policy_registry.refresh()
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        policy_registry.get("bright")
    assert "colour" in caplog.text
    policy_registry.get("none")


@pytest.mark.parametrize("name", [one.name for one in fields(BackboneKey)])
def test_a_policy_made_for_another_backbone_is_kept_and_refused(
    policy_registry: PolicyRegistry,
    store: Store,
    seeds: dict[str, Policy],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = replace(seeds["bright"].backbone, **{name: "another"})
    # What its gradients went through counts for a policy that has some.
    parts = {"judge": "sha256:j"} | ({"forward": "sha256:f"} if name == "gradient" else {})
    promote(store, to_document(replace(seeds["bright"], backbone=other, parts=parts)))
    policy_registry.refresh()
    policy_registry.refresh()
    with pytest.raises(BackendUnavailable, match=rf"another backbone \({name}\) than model 'tiny'"):
        policy_registry.get("bright")
    assert caplog.text.count("was made for another") == 1


def test_what_gradients_go_through_is_nothing_to_a_policy_without_them(
    policy_registry: PolicyRegistry, store: Store, seeds: dict[str, Policy]
) -> None:
    other = replace(seeds["bright"].backbone, gradient="another")
    promote(store, to_document(replace(seeds["bright"], backbone=other)))
    policy_registry.refresh()
    assert policy_registry.get("bright").backbone == other


def test_work_ends_when_its_policy_is_switched_off(
    policy_registry: PolicyRegistry, store: Store
) -> None:
    begun = policy_registry.pointers["bright"]
    ended = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    async def switched_off() -> None:
        work = asyncio.ensure_future(policy_registry.guard(begun, forever()))
        await asyncio.sleep(0.05)
        store.policies.disable("bright", "somebody")
        policy_registry.refresh()
        await work

    with pytest.raises(PolicyDisabled):
        asyncio.run(asyncio.wait_for(switched_off(), 5))
    assert ended == ["cleaned up"]


def test_a_switch_that_was_pulled_and_put_back_between_two_looks_counts(
    policy_registry: PolicyRegistry, store: Store
) -> None:
    begun = policy_registry.pointers["bright"]
    before = store.policies.disable("bright", "somebody")
    policy_registry.check(begun)
    store.policies.point("bright", before, 1, "somebody", "policy.promote")
    policy_registry.refresh()
    policy_registry.get("bright")
    policy_registry.check(policy_registry.pointers["bright"])
    with pytest.raises(PolicyDisabled, match="since this request began"):
        policy_registry.check(begun)

    async def forever() -> None:
        await asyncio.sleep(3600)

    with pytest.raises(PolicyDisabled):
        asyncio.run(asyncio.wait_for(policy_registry.guard(begun, forever()), 5))


def test_a_request_that_began_under_a_pulled_switch_is_refused(
    policy_registry: PolicyRegistry, store: Store
) -> None:
    begun = store.policies.disable("bright", "somebody")
    store.policies.point("bright", begun, 1, "somebody", "policy.promote")
    policy_registry.refresh()
    with pytest.raises(PolicyDisabled):
        policy_registry.check(begun)


def test_work_that_nobody_wants_any_more_is_cancelled(policy_registry: PolicyRegistry) -> None:
    begun = policy_registry.pointers["bright"]
    ended = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    async def disconnected() -> None:
        work = asyncio.ensure_future(policy_registry.guard(begun, forever()))
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert ended == ["cleaned up"]

    asyncio.run(disconnected())


def test_a_result_or_a_fault_of_the_work_comes_through(policy_registry: PolicyRegistry) -> None:
    begun = policy_registry.pointers["bright"]

    async def well() -> int:
        return 7

    async def badly() -> int:
        raise BackendUnavailable("no")

    assert asyncio.run(policy_registry.guard(begun, well())) == 7
    with pytest.raises(BackendUnavailable):
        asyncio.run(policy_registry.guard(begun, badly()))


def test_a_shadow_is_another_version_or_none(
    policy_registry: PolicyRegistry, store: Store, seeds: dict[str, Policy]
) -> None:
    store.policies.add("bright", stricter(seeds["bright"]), None, "somebody")
    before = store.policies.pointers()["bright"]
    store.policies.shadow("bright", before, 2, "somebody")
    policy_registry.refresh()
    shadow = policy_registry.shadow("bright")
    assert shadow is not None
    assert shadow.version == 2
    now = store.policies.pointers()["bright"]
    store.policies.point("bright", now, 2, "somebody", "policy.promote")
    policy_registry.refresh()
    assert policy_registry.shadow("bright") is None, "it is in force"


def _of_another_model(policy: Policy) -> Policy:
    return replace(policy, settings=policy.settings.model_copy(update={"model": "other"}))


def test_services_on_one_store_do_not_see_each_others_models(
    store: Store, seeds: dict[str, Policy]
) -> None:
    """As when the shipped bundle was served before, and an imported model is now."""
    theirs = {f"their-{name}": _of_another_model(policy) for name, policy in seeds.items()}
    PolicyRegistry(store, theirs).close()
    policy_registry = PolicyRegistry(store, seeds)
    try:
        assert set(policy_registry.pointers) == set(policy_registry.listed) == set(seeds)
        with pytest.raises(PolicyNotFound):
            policy_registry.get("their-bright")
    finally:
        policy_registry.close()


def test_a_name_that_the_store_has_for_a_model_that_is_not_served_stops_the_start(
    store: Store, seeds: dict[str, Policy]
) -> None:
    PolicyRegistry(
        store, {name: _of_another_model(policy) for name, policy in seeds.items()}
    ).close()
    with pytest.raises(ConfigError, match=r"policies\.\w+: .* for model 'other'.*another name"):
        PolicyRegistry(store, seeds)


def test_a_name_that_becomes_another_models_lets_nothing_leave(
    policy_registry: PolicyRegistry, store: Store, seeds: dict[str, Policy]
) -> None:
    """Another service on the store has promoted it meanwhile."""
    promote(store, to_document(_of_another_model(seeds["bright"])))
    policy_registry.refresh()
    assert "bright" not in policy_registry.listed
    with pytest.raises(StoreUnavailable):
        policy_registry.get("bright")
