"""What a version has to satisfy before it is put in force, and which one was in force before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.api.auth import Caller
from service.errors import Conflict
from service.policy import Policy


def refuse_uncalibrated(candidate: Policy) -> None:
    """Raises Conflict when callers may ask for a step count that has no threshold."""
    if missing := ", ".join(str(steps) for steps in candidate.uncalibrated):
        raise Conflict(
            f"policy {candidate.name!r} version {candidate.version} has no calibrated threshold at "
            f"{missing} steps: train its reward for this policy, on a dataset of the classes and "
            "guidance_scale that it draws, so that the card has one"
        )


def refuse_own(candidate: Policy, trained_by: str | None, caller: Caller) -> None:
    """Raises Conflict when the caller's key trained the reward; a name beside a key is no proof."""
    if trained_by is not None and trained_by.partition("/")[0] == caller.name:
        raise Conflict(
            f"reward {candidate.reward!r} was trained with this key ({caller.name}): somebody else "
            "has to approve it, unless feedback.self_approval is on"
        )


def refuse_looser(candidate: Policy, earlier: Sequence[Policy], caller: Caller) -> None:
    """Raises Conflict when a threshold would fall below one that was in force, for all but admins.

    `earlier` are all versions of the name that were ever in force. Another judge has another scale:
    thresholds are compared with those of the same judge, however long ago.
    """
    if caller.has("admin"):
        return
    for one in earlier:
        if one.censors and not candidate.censors:
            raise Conflict(
                f"policy {candidate.name!r} version {candidate.version} censors nothing, and "
                f"version {one.version} does: that needs the 'admin' scope"
            )
    same = [one for one in earlier if one.judge == candidate.judge]
    for steps, wanted in candidate.operating.items():
        had = [one.operating[steps].threshold for one in same if steps in one.operating]
        highest = max(had, default=wanted.threshold)
        if wanted.threshold < highest:
            raise Conflict(
                f"at {steps} steps the threshold of policy {candidate.name!r} would fall from "
                f"{highest:.4f} to {wanted.threshold:.4f}, and this judge has had the higher one "
                "in force: lowering one needs the 'admin' scope"
            )


def version_before(moves: Sequence[Mapping[str, Any]]) -> int | None:
    """The version that a rollback goes to, from the store's `moves`; None if none is known.

    A rollback undoes the last promotion that no rollback has undone yet.
    """
    in_force: list[int] = []
    for entry in moves:
        version = entry["detail"]["version"]
        if entry["action"] == "policy.rollback":
            del in_force[-1:]
        # To promote what is in force already only switches it on.
        if in_force[-1:] != [version]:
            in_force.append(version)
    return in_force[-2] if len(in_force) > 1 else None
