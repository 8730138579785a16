"""Pointers and versions when two change them at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from service.errors import Conflict
from service.store.policies import Pointer
from service.store.store import Store

PROMOTE = "policy.promote"


def seeded(store: Store) -> None:
    store.policies.seed({"bright": {}}, "configuration")
    store.policies.add("bright", {}, None, "somebody")


def test_a_switch_that_was_pulled_again_is_not_overridden(store: Store) -> None:
    """Somebody began to promote while the policy was off, and somebody else said off again."""
    seeded(store)
    store.policies.disable("bright", "one")
    before = store.policies.pointers()["bright"]
    store.policies.disable("bright", "another")
    with pytest.raises(Conflict, match="changed meanwhile"):
        store.policies.point("bright", before, 2, "somebody", PROMOTE)
    assert store.policies.pointers()["bright"].disabled
    now = store.policies.point(
        "bright", store.policies.pointers()["bright"], 2, "somebody", PROMOTE
    )
    assert (now.version, now.disabled) == (2, False)
    told = store.policies.history("bright")[0]["detail"]
    assert told["before"] == {"name": "bright", "version": 1, "disabled": True, "shadow": None}


def test_a_shadow_ends_when_its_version_is_put_in_force(store: Store) -> None:
    seeded(store)

    def now() -> Pointer:
        return store.policies.pointers()["bright"]

    for version, action in ((2, PROMOTE), (1, "policy.rollback")):
        store.policies.shadow("bright", now(), version, "somebody")
        moved = store.policies.point("bright", now(), version, "somebody", action)
        assert (moved.version, moved.shadow) == (version, None)
        assert store.policies.history("bright")[0]["detail"]["shadow"] is None
    # Another version's goes on.
    store.policies.shadow("bright", now(), 2, "somebody")
    assert store.policies.point("bright", now(), 1, "somebody", PROMOTE).shadow == 2


def at_once(work: Callable[[], int], times: int = 8) -> list[int | Exception]:
    """What so many threads that begin together return or raise."""
    barrier = Barrier(times)

    def one(_: int) -> int | Exception:
        barrier.wait()
        try:
            return work()
        except Exception as error:
            return error

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(one, range(times)))


def test_versions_that_are_added_at_once_get_numbers_of_their_own(store: Store) -> None:
    seeded(store)
    got = at_once(lambda: store.policies.add("bright", {}, None, "somebody"))
    assert set(got) == set(range(3, 11))
    assert len(store.policies.versions("bright")) == 10


def test_of_those_that_put_a_new_name_in_force_at_once_one_wins(store: Store) -> None:
    store.policies.add("new", {}, None, "somebody")
    got = at_once(lambda: store.policies.point("new", None, 1, "somebody", PROMOTE).version)
    assert [type(one) for one in got].count(Conflict) == 7
    assert got.count(1) == 1
    assert len(store.policies.moves("new")) == 1
