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
            f"{missing} steps: train its reward for this policy, so that its card has one"
        )


def refuse_own(candidate: Policy, trained_by: str | None, caller: Caller) -> None:
    """Raises Conflict when the caller's key trained the reward; a name beside a key is no proof."""
    if trained_by is not None and trained_by.partition("/")[0] == caller.name:
        raise Conflict(
            f"reward {candidate.reward!r} was trained with this key ({caller.name}): somebody else "
            "has to approve it, unless feedback.self_approval is on"
        )


def refuse_looser(candidate: Policy, in_force: Policy | None, caller: Caller) -> None:
    """Raises Conflict when a threshold of the same judge would fall, for all but admins.

    Another judge has another scale: its thresholds stand on its own calibration.
    """
    if in_force is None or not in_force.censors or caller.has("admin"):
        return
    if not candidate.censors:
        raise Conflict(
            f"policy {candidate.name!r} version {candidate.version} censors nothing, and version "
            f"{in_force.version} does: that needs the 'admin' scope"
        )
    if candidate.judge != in_force.judge:
        return
    for steps, here in in_force.operating.items():
        wanted = candidate.operating.get(steps)
        if wanted is not None and wanted.threshold < here.threshold:
            raise Conflict(
                f"at {steps} steps the threshold of policy {candidate.name!r} would fall from "
                f"{here.threshold:.4f} to {wanted.threshold:.4f}: lowering one needs the 'admin' "
                "scope"
            )


def version_before(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The version that a rollback goes to, from the audit log, newest first; None if none is known.

    A rollback undoes the last promotion that no rollback has undone yet.
    """
    in_force: list[int] = []
    for entry in reversed(history):
        version = entry["detail"].get("version")
        if entry["action"] == "policy.rollback":
            del in_force[-1:]
        elif entry["action"] not in ("policy.seed", "policy.promote"):
            continue
        # To promote what is in force already only switches it on.
        if in_force[-1:] != [version]:
            in_force.append(version)
    return in_force[-2] if len(in_force) > 1 else None
