"""The policies in force: seeded once, read again and again, and never believed for long."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.bundle import Bundle
from service.config import ConfigError, Settings
from service.errors import (
    BackendUnavailable,
    PolicyDisabled,
    PolicyNotFound,
    StoreUnavailable,
)
from service.live import Live
from service.pinning import pin
from service.policy import Policy, to_document
from service.store.store import Store
from tests.bundles import settings
from tests.stores import open_store


@pytest.fixture
def seeds(bundle: Bundle) -> dict[str, Policy]:
    return pin(Settings.model_validate(settings(str(bundle.folder))), {"tiny": bundle})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.sqlite"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def live(store: Store, seeds: dict[str, Policy]) -> Iterator[Live]:
    """What a test has to read itself."""
    opened = Live(store, seeds, poll_s=3600)
    yield opened
    # Nobody waits for an hour.
    opened._closing.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about in time"
        time.sleep(0.01)


def stricter(seed: Policy, by: float = 0.1) -> dict[str, Any]:
    """A document whose thresholds are higher than the seed's."""
    operating = {
        steps: replace(here, threshold=here.threshold + by)
        for steps, here in seed.operating.items()
    }
    return to_document(replace(seed, operating=operating))


def promote(store: Store, document: dict[str, Any], name: str = "bright") -> int:
    number = store.policies.add(name, document, None, "somebody")
    before = store.policies.pointers().get(name)
    store.policies.point(name, before, number, "somebody", "policy.promote")
    return number


def test_an_empty_store_takes_the_configurations_policies(
    live: Live, seeds: dict[str, Policy], store: Store
) -> None:
    assert dict(live.policies) == seeds
    assert live.get("bright") == seeds["bright"]
    assert store.policies.read("bright", 1).created_by == "configuration"
    with pytest.raises(PolicyNotFound, match="there are none, bright"):
        live.get("other")


def test_a_restart_keeps_what_was_promoted_and_says_where_the_configuration_differs(
    store: Store, seeds: dict[str, Policy], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "winnow.live"):
        Live(store, seeds).close()
    assert not caplog.records, "nothing differs from what was just seeded"
    promote(store, stricter(seeds["bright"]))
    with caplog.at_level(logging.WARNING, "winnow.live"):
        again = Live(store, seeds)
        again.close()
    policy = again.get("bright")
    assert policy.version == 2
    assert policy.operating[50].threshold == pytest.approx(0.6)
    (record,) = caplog.records
    assert "bright (version 2 is in force): the store wins" in record.getMessage()
    assert "winnow policies promote NAME VERSION`" in record.getMessage()


def test_replicas_may_seed_at_once(url: str, store: Store, seeds: dict[str, Policy]) -> None:
    stores = [open_store(url) for _ in range(6)]
    with ThreadPoolExecutor(len(stores)) as pool:
        for live in pool.map(lambda one: Live(one, seeds), stores):
            live.close()
            assert live.get("bright").version == 1
    assert [entry["action"] for entry in store.policies.history("bright")] == ["policy.seed"]
    for one in stores:
        one.close()


def test_a_name_with_versions_that_were_never_in_force_is_seeded_after_them(
    store: Store, seeds: dict[str, Policy]
) -> None:
    assert store.policies.add("bright", stricter(seeds["bright"]), None, "somebody") == 1
    live = Live(store, seeds)
    live.close()
    assert live.get("bright") == replace(seeds["bright"], version=2)


def test_a_change_is_seen_by_itself(store: Store, seeds: dict[str, Policy]) -> None:
    live = Live(store, seeds, poll_s=0.05)
    promote(store, stricter(seeds["bright"]))
    wait_for(lambda: live.get("bright").version == 2)
    store.policies.disable("bright", "somebody")
    wait_for(lambda: "bright" not in live.policies)
    live.close()


def test_a_policy_that_was_switched_off_is_refused_in_every_version(
    live: Live, store: Store, seeds: dict[str, Policy]
) -> None:
    before = live.pointers["bright"]
    live.check(before)
    promote(store, stricter(seeds["bright"]))
    live.refresh()
    live.check(before)
    store.policies.disable("bright", "somebody")
    live.refresh()
    with pytest.raises(PolicyDisabled):
        live.get("bright")
    with pytest.raises(PolicyDisabled):
        live.check(before)
    live.get("none")
    assert list(live.policies) == ["none"]
    assert live.known("bright").version == 2, "whoever mends it must find it"
    with pytest.raises(PolicyNotFound):
        live.known("moon")


def test_whoever_mends_a_policy_finds_it_switched_off_and_all(
    live: Live, store: Store, seeds: dict[str, Policy]
) -> None:
    promote(store, stricter(seeds["bright"]))
    store.policies.disable("bright", "somebody")
    live.refresh()
    live.stale_s = 0.0
    assert live.known("bright").version == 2
    with pytest.raises(PolicyNotFound, match="no policy 'other'"):
        live.known("other")
    before = store.policies.pointers()["bright"]
    number = store.policies.add("bright", {"colour": "red"}, None, "somebody")
    store.policies.point("bright", before, number, "somebody", "policy.promote")
    live.refresh()
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        live.known("bright")


def test_what_could_not_be_read_for_too_long_is_not_believed(live: Live) -> None:
    begun = live.pointers["bright"]
    live.stale_s = 0.05
    time.sleep(0.06)
    for ask in (lambda: live.get("bright"), lambda: live.check(begun)):
        with pytest.raises(StoreUnavailable, match=r"could not be read for 0\.05 s"):
            ask()
    live.refresh()
    live.check(begun)


def test_a_reading_counts_from_its_beginning(
    live: Live, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow answer tells of the moment when it was asked for, at best."""
    pointers = store.policies.pointers
    live.stale_s = 0.05

    def slow() -> Any:
        found = pointers()
        time.sleep(0.1)
        return found

    monkeypatch.setattr(store.policies, "pointers", slow)
    live.refresh()
    with pytest.raises(StoreUnavailable):
        live.get("bright")


def test_the_thread_outlives_a_store_that_fails(
    store: Store, seeds: dict[str, Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(store, seeds, poll_s=0.02, stale_s=0.2)
    pointers = store.policies.pointers

    def fail() -> Any:
        raise RuntimeError("anything at all")

    monkeypatch.setattr(store.policies, "pointers", fail)
    time.sleep(0.3)
    with pytest.raises(StoreUnavailable):
        live.get("bright")
    monkeypatch.setattr(store.policies, "pointers", pointers)
    time.sleep(0.1)
    live.get("bright")
    live.close()


def test_a_version_that_cannot_be_read_is_no_version(
    live: Live, store: Store, seeds: dict[str, Policy], caplog: pytest.LogCaptureFixture
) -> None:
    promote(store, to_document(seeds["bright"]) | {"colour": "red"})
    live.refresh()
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        live.get("bright")
    assert "colour" in caplog.text
    live.get("none")


@pytest.mark.parametrize("name", ["backbone", "schedule", "dtype"])
def test_a_policy_made_for_another_backbone_is_kept_and_refused(
    live: Live, store: Store, seeds: dict[str, Policy], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    promote(store, to_document(seeds["bright"]) | {name: "another"})
    live.refresh()
    live.refresh()
    with pytest.raises(BackendUnavailable, match=f"was made for another {name} than model 'tiny'"):
        live.get("bright")
    assert caplog.text.count("was made for another") == 1


def test_work_ends_when_its_policy_is_switched_off(live: Live, store: Store) -> None:
    begun = live.pointers["bright"]
    ended = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    async def switched_off() -> None:
        work = asyncio.ensure_future(live.guard(begun, forever()))
        await asyncio.sleep(0.05)
        store.policies.disable("bright", "somebody")
        live.refresh()
        await work

    with pytest.raises(PolicyDisabled):
        asyncio.run(asyncio.wait_for(switched_off(), 5))
    assert ended == ["cleaned up"]


def test_a_switch_that_was_pulled_and_put_back_between_two_looks_counts(
    live: Live, store: Store
) -> None:
    begun = live.pointers["bright"]
    before = store.policies.disable("bright", "somebody")
    live.check(begun)
    store.policies.point("bright", before, 1, "somebody", "policy.promote")
    live.refresh()
    live.get("bright")
    live.check(live.pointers["bright"])
    with pytest.raises(PolicyDisabled, match="since this request began"):
        live.check(begun)

    async def forever() -> None:
        await asyncio.sleep(3600)

    with pytest.raises(PolicyDisabled):
        asyncio.run(asyncio.wait_for(live.guard(begun, forever()), 5))


def test_a_request_that_began_under_a_pulled_switch_is_refused(live: Live, store: Store) -> None:
    begun = store.policies.disable("bright", "somebody")
    store.policies.point("bright", begun, 1, "somebody", "policy.promote")
    live.refresh()
    with pytest.raises(PolicyDisabled):
        live.check(begun)


def test_work_that_nobody_wants_any_more_is_cancelled(live: Live) -> None:
    begun = live.pointers["bright"]
    ended = []

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    async def disconnected() -> None:
        work = asyncio.ensure_future(live.guard(begun, forever()))
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert ended == ["cleaned up"]

    asyncio.run(disconnected())


def test_a_result_or_a_fault_of_the_work_comes_through(live: Live) -> None:
    begun = live.pointers["bright"]

    async def well() -> int:
        return 7

    async def badly() -> int:
        raise BackendUnavailable("no")

    assert asyncio.run(live.guard(begun, well())) == 7
    with pytest.raises(BackendUnavailable):
        asyncio.run(live.guard(begun, badly()))


def test_a_shadow_is_another_version_or_none(
    live: Live, store: Store, seeds: dict[str, Policy]
) -> None:
    store.policies.add("bright", stricter(seeds["bright"]), None, "somebody")
    before = store.policies.pointers()["bright"]
    store.policies.shadow("bright", before, 2, "somebody")
    live.refresh()
    shadow = live.shadow("bright")
    assert shadow is not None
    assert shadow.version == 2
    now = store.policies.pointers()["bright"]
    store.policies.point("bright", now, 2, "somebody", "policy.promote")
    live.refresh()
    assert live.shadow("bright") is None, "it is in force"


def _of_another_model(policy: Policy) -> Policy:
    return replace(policy, settings=policy.settings.model_copy(update={"model": "other"}))


def test_services_on_one_store_do_not_see_each_others_models(
    store: Store, seeds: dict[str, Policy]
) -> None:
    """As when the shipped bundle was served before, and an imported model is now."""
    theirs = {f"their-{name}": _of_another_model(policy) for name, policy in seeds.items()}
    Live(store, theirs).close()
    live = Live(store, seeds)
    try:
        assert set(live.pointers) == set(live.listed) == set(seeds)
        with pytest.raises(PolicyNotFound):
            live.get("their-bright")
    finally:
        live.close()


def test_a_name_that_the_store_has_for_a_model_that_is_not_served_stops_the_start(
    store: Store, seeds: dict[str, Policy]
) -> None:
    Live(store, {name: _of_another_model(policy) for name, policy in seeds.items()}).close()
    with pytest.raises(ConfigError, match=r"policies\.\w+: .* for model 'other'.*another name"):
        Live(store, seeds)


def test_a_name_that_becomes_another_models_lets_nothing_leave(
    live: Live, store: Store, seeds: dict[str, Policy]
) -> None:
    """Another service on the store has promoted it meanwhile."""
    promote(store, to_document(_of_another_model(seeds["bright"])))
    live.refresh()
    assert "bright" not in live.listed
    with pytest.raises(StoreUnavailable):
        live.get("bright")
