"""Versions of policies: how one is made, and what it has to satisfy before it is in force.

The networks of a version are in every replica before it is promoted; requests that run keep their
plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.config import Caller, Settings
from service.errors import Conflict, InvalidValue, PolicyNotFound, WinnowError, shown
from service.policies.canary import Canaries
from service.policies.policy import Policy, derive, to_document
from service.policies.registry import PolicyRegistry, parse, stored
from service.store.policies import Pointer, Version
from service.store.store import Store

log = logging.getLogger("winnow.policies")


@dataclass(frozen=True)
class PromotionService:
    """Makes versions, and puts them in force. What is not async blocks.

    `warm` brings a policy's networks into every replica, or raises what stops it. `by` is who is
    named in the audit log.
    """

    settings: Settings
    store: Store
    policy_registry: PolicyRegistry
    canaries: Canaries
    warm: Callable[[Policy], Awaitable[None]]

    def add(self, name: str, based_on: str, reward: str | None, by: str) -> Policy:
        """A new version, not in force yet: with a trained reward, or as the configuration says.

        Raises InvalidValue, PolicyNotFound, RewardNotFound and Conflict.
        """
        if reward is None:
            policy = self._configured(name, based_on)
        else:
            base = _readable(self.store.policies.read(based_on, self._pointer(based_on).version))
            policy = replace(self._trained(base, reward), name=name)
        number = self.store.policies.add(name, to_document(policy), reward, by)
        return replace(policy, version=number)

    async def promote(self, name: str, number: int, caller: Caller, by: str) -> Pointer:
        """Put a version in force. Raises Conflict for what it has to satisfy and does not."""

        def look() -> tuple[Pointer | None, Policy]:
            before = self.store.policies.pointers().get(name)
            wanted = _readable(self.store.policies.read(name, number))
            self._refuse_unfit(wanted, caller)
            if wanted.reward is not None and not self.settings.feedback.self_approval:
                refuse_own(wanted, self.store.rewards.read(wanted.reward).created_by, caller)
            return before, wanted

        before, wanted = await asyncio.to_thread(look)
        await self.warm(wanted)
        await self._refuse_blind(wanted, caller)
        return await asyncio.to_thread(
            self._move_pointer, name, before, wanted.version, by, "policy.promote"
        )

    async def rollback(self, name: str, caller: Caller, by: str) -> Pointer:
        """Put the version before in force again. Raises Conflict as `promote` does."""

        def look() -> tuple[Pointer, Policy]:
            before = self._pointer(name)
            if before.disabled:
                raise Conflict(
                    f"policy {name!r} is switched off: promote a version to switch it on"
                )
            number = version_before(self.store.policies.moves(name))
            if number is None:
                raise Conflict(f"policy {name!r} has had no version in force before this one")
            wanted = _readable(self.store.policies.read(name, number))
            self._refuse_unfit(wanted, caller)
            return before, wanted

        before, wanted = await asyncio.to_thread(look)
        fault = None
        try:
            await self.warm(wanted)
            fault = await self.canaries.fault(wanted)
        except WinnowError as error:
            # What is in force may be what breaks the replicas; they load the other when they are
            # asked for it, and nothing leaves without it.
            log.warning("policy %r goes back to version %d cold: %s", name, wanted.version, error)
        refuse_fault(wanted, fault)
        return await asyncio.to_thread(
            self._move_pointer, name, before, wanted.version, by, "policy.rollback"
        )

    def disable(self, name: str, by: str) -> Pointer:
        """Switch a policy off everywhere."""
        now = self.store.policies.disable(name, by)
        self._refresh_registry()
        return now

    async def shadow(self, name: str, number: int | None, by: str) -> Pointer:
        """Let a version score and decide nothing; None ends it."""

        def look() -> tuple[Pointer, Policy | None]:
            before = self._pointer(name)
            if number is None:
                return before, None
            wanted = _readable(self.store.policies.read(name, number))
            if wanted.judge is None:
                raise InvalidValue(f"version {number} has no judge to score with", "version")
            self.policy_registry.require_compatible(wanted)
            refuse_uncalibrated(wanted)
            return before, wanted

        before, wanted = await asyncio.to_thread(look)
        if wanted is not None:
            await self.warm(wanted)
        now = await asyncio.to_thread(self.store.policies.shadow, name, before, number, by)
        await asyncio.to_thread(self._refresh_registry)
        return now

    def _pointer(self, name: str) -> Pointer:
        found = self.store.policies.pointers().get(name)
        if found is None:
            raise PolicyNotFound(f"no policy {shown(name)} is in force", "policy")
        return found

    def _refuse_unfit(self, wanted: Policy, caller: Caller) -> None:
        """What holds for whatever comes into force, by a promotion or by a rollback."""
        self.policy_registry.require_compatible(wanted)
        refuse_uncalibrated(wanted)
        if wanted.name == self.settings.default_policy and not wanted.censors:
            raise Conflict(f"{wanted.name!r} is the default policy, which must censor")
        moves = self.store.policies.moves(wanted.name)
        numbers = {move["detail"]["version"] for move in moves}
        # One that nobody can read any more has no threshold to compare with; the log names it.
        earlier = [stored(self.store, wanted.name, number) for number in sorted(numbers)]
        refuse_looser(wanted, [one for one in earlier if isinstance(one, Policy)], caller)

    async def _refuse_blind(self, wanted: Policy, caller: Caller) -> None:
        """What a judge has to show before it decides for the first time."""
        refuse_fault(wanted, await self.canaries.fault(wanted))
        now = self.policy_registry.listed.get(wanted.name)
        if now is None or now.canary is None or caller.has("admin"):
            return
        if (now.question, now.settings.model) != (wanted.question, wanted.settings.model):
            return
        moves = await asyncio.to_thread(self.store.policies.moves, wanted.name)
        if wanted.version not in {move["detail"]["version"] for move in moves}:
            shown = replace(wanted, canary=now.canary, control=None)
            refuse_fault(wanted, await self.canaries.fault(shown), now)

    def _configured(self, name: str, based_on: str) -> Policy:
        """The policy as the configuration file has it now."""
        seeds = self.policy_registry.seeds
        if name != based_on or name not in seeds:
            raise InvalidValue(
                "without a reward, a version is what the configuration says of that name: based_on "
                f"must be the same name, one of {', '.join(seeds)}",
                "based_on",
            )
        return seeds[name]

    def _trained(self, base: Policy, reward_id: str) -> Policy:
        """A policy with the networks and thresholds of a trained reward."""
        reward = self.store.rewards.read(reward_id)
        if reward.status != "ready":
            raise Conflict(f"reward {reward_id!r} is not ready: it is {reward.status}")
        dataset = self.store.datasets.read(reward.dataset)
        if dataset.model != base.settings.model:
            raise InvalidValue(
                f"reward {reward_id!r} is for model {dataset.model!r}, policy {base.name!r} for "
                f"{base.settings.model!r}",
                "reward",
            )
        return replace(derive(base, reward), question=dataset.question)

    def _move_pointer(
        self, name: str, before: Pointer | None, number: int, by: str, action: str
    ) -> Pointer:
        now = self.store.policies.point(name, before, number, by, action)
        self._refresh_registry()
        log.info("%s of %s to version %d by %s", action, name, number, by)
        return now

    def _refresh_registry(self) -> None:
        """This replica sees the change at once, the others at their next reading."""
        try:
            self.policy_registry.refresh()
        except WinnowError as error:  # the change is made; it is read again half a second later
            log.warning("the policies in force could not be read again at once: %s", error)


def _readable(version: Version) -> Policy:
    policy = parse(version)
    if policy is None:
        raise Conflict(
            f"policy {version.name!r} version {version.version} was written by another Winnow, "
            "and this one cannot read it"
        )
    return policy


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


def refuse_fault(candidate: Policy, fault: str | None, now: Policy | None = None) -> None:
    """Raises Conflict for a judge that cannot decide, by what `Canaries.fault` says of it.

    With `now`, it was shown the canary of the version in force, which asks the same question.
    """
    if fault is None:
        return
    whose, remedy = "", ": label more images and train it again, or give it a canary"
    if now is not None:
        whose = f" (shown the canary of version {now.version}, which asks the same)"
        remedy = ": if that canary is benign, it needs the 'admin' scope"
    raise Conflict(
        f"of the judge of policy {candidate.name!r} version {candidate.version}{whose}, "
        f"{fault}{remedy}"
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
    for (size, steps), wanted in candidate.all_points.items():
        earlier_points = [one.all_points for one in same]
        had = [
            points[size, steps].threshold for points in earlier_points if (size, steps) in points
        ]
        highest = max(had, default=wanted.threshold)
        if wanted.threshold < highest:
            where = f" of {size}" if size else ""
            raise Conflict(
                f"at {steps} steps{where} the threshold of policy {candidate.name!r} would fall "
                f"from {highest:.4f} to {wanted.threshold:.4f}, and this judge has had the higher "
                "one in force: lowering one needs the 'admin' scope"
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
