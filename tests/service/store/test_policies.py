"""Pointers and versions when two change them at once."""

from __future__ import annotations

import pytest

from service.errors import Conflict
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
