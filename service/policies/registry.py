"""The policies in force, as the store says: read twice a second, and never believed for long."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from models.bundles.sampling_key import differences
from service.config import ConfigError
from service.errors import (
    BackendUnavailable,
    Conflict,
    PolicyDisabled,
    PolicyNotFound,
    StoreUnavailable,
    shown,
)
from service.policies.policy import Policy, from_document, to_document
from service.store.policies import Pointer, Version
from service.store.store import Store

log = logging.getLogger("winnow.policies")

STALE_S = 5.0
"""A kill switch that could not be read for so long counts as pulled."""

CHECK_S = 0.25
"""How often a running request looks whether its policy has been switched off."""

SEEDING_TRIES = 20
SEEDING_WAIT_S = 0.1

Result = TypeVar("Result")


@dataclass(frozen=True)
class Unreadable:
    """A stored version that this Winnow cannot read, and why: nothing leaves under it."""

    why: str


@dataclass(frozen=True)
class _View:
    """What one reading of the store found; `read_at` is when it began, `time.monotonic()`."""

    read_at: float
    pointers: Mapping[str, Pointer] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    shadows: Mapping[str, Policy] = field(default_factory=dict)


class PolicyRegistry:
    """The policies in force, and the switch of each. Any thread may ask; only reading blocks."""

    def __init__(
        self,
        store: Store,
        seeds: Mapping[str, Policy],
        poll_s: float = 0.5,
        stale_s: float = STALE_S,
    ) -> None:
        """`seeds` are the configuration's policies: names that the store lacks begin with them.

        Raises StoreUnavailable, and ConfigError as `refuse_incompatible_policies` does.
        """
        self.seeds = seeds
        self.stale_s = stale_s
        self._store = store
        self._poll_s = poll_s
        # What a model's policies must have been made for, to mean what they say.
        self._backbones = {seed.settings.model: seed.backbone for seed in seeds.values()}
        self._inputs = {seed.settings.model: seed.inputs for seed in seeds.values()}
        self._versions: dict[tuple[str, int], Policy | Unreadable] = {}
        self._reading = threading.Lock()
        self._closing = threading.Event()
        self._view = _View(time.monotonic())
        _seed(store, seeds)
        refuse_incompatible_policies(store, seeds)
        self.refresh()
        self._log_differences()
        self._thread = threading.Thread(target=self._poll, name="policies", daemon=True)
        self._thread.start()

    @property
    def pointers(self) -> Mapping[str, Pointer]:
        """What the store last said is in force, by name."""
        return self._view.pointers

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The policies in force; those that are switched off are left out."""
        view = self._view
        return {
            name: policy
            for name, policy in view.policies.items()
            if not view.pointers[name].disabled
        }

    @property
    def listed(self) -> Mapping[str, Policy]:
        """All policies, those that are switched off too: to look at, never to draw by."""
        return self._view.policies

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The names whose version in force cannot be read, and why: nothing leaves under them."""
        return self._view.unreadable

    def get(self, name: str) -> Policy:
        """The policy in force under a name.

        Raises PolicyNotFound, PolicyDisabled, StoreUnavailable when the store has not been read for
        too long, and BackendUnavailable when the policy was made for another backbone.
        """
        view = self._fresh()
        if name in view.pointers:
            _refuse_disabled(view.pointers[name])
        return self.known(name)

    def known(self, name: str) -> Policy:
        """The version that a name points to, switched off or not: for those who mend it.

        Raises PolicyNotFound, StoreUnavailable when that version could never be read, and
        BackendUnavailable when it was made for another backbone.
        """
        policy = self._named(self._view, name)
        self.require_compatible(policy)
        return policy

    def version(self, name: str, number: int) -> Policy:
        """A version, in force or not, for what began under it.

        Raises Conflict when it cannot be read, and BackendUnavailable as `known`.
        """
        policy = self._read(name, number)
        if isinstance(policy, Unreadable):
            raise Conflict(f"policy {name!r} version {number} cannot be read: {policy.why}")
        self.require_compatible(policy)
        return policy

    def shadow(self, name: str) -> Policy | None:
        """The version that scores beside the one in force, if there is one."""
        return self._view.shadows.get(name)

    def check(self, begun: Pointer) -> None:
        """Called right before images leave; `begun` is the pointer that their request began with.

        Raises PolicyDisabled if the policy was switched off since, whichever version it is and
        even if it is on again, and StoreUnavailable when nobody can tell.
        """
        _refuse_switched(begun, self._fresh())

    def require_fresh(self) -> None:
        """Raises StoreUnavailable where the store has not been read for too long."""
        self._fresh()

    def require_compatible(self, policy: Policy) -> None:
        """Raises BackendUnavailable unless the policy was made for the backbone that runs."""
        here, made_for = self._backbones.get(policy.settings.model), policy.backbone
        if here is not None:
            here, made_for = here.used_by(policy.parts), made_for.used_by(policy.parts)
        if made_for != here:
            other = [path for path in differences(made_for, here) if path]
            raise BackendUnavailable(
                f"policy {policy.name!r} version {policy.version} was made for another backbone "
                f"({' and '.join(other)}) than model {policy.settings.model!r} runs on: promote a "
                "version that was made for this one"
            )

    async def guard(self, begun: Pointer, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, unless the policy is switched off meanwhile: then it is cancelled.

        Raises PolicyDisabled and StoreUnavailable as `check` does.
        """
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                _refuse_switched(begun, self._view)
                await asyncio.wait([task], timeout=CHECK_S)
            result = await task
            self.check(begun)
            return result
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    def refresh(self) -> None:
        """Read the store now. Raises StoreUnavailable."""
        with self._reading:
            read_at = time.monotonic()
            found = self._store.policies.pointers()
            # In the order of the configuration; what came later follows by name.
            order = [*(name for name in self.seeds if name in found), *sorted(found)]
            pointers = {name: found[name] for name in order}
            in_force = {name: self._read(name, at.version) for name, at in pointers.items()}
            for name, policy in in_force.items():
                if isinstance(policy, Policy) and policy.settings.model not in self._backbones:
                    # Of another service on the same store. One of our own names is kept, and is
                    # no policy: nothing leaves under it.
                    in_force[name] = Unreadable(
                        f"it is for model {policy.settings.model!r}, which is not served here"
                    )
                    if name not in self.seeds:
                        del pointers[name]
            shadows = {
                name: self._read(name, at.shadow)
                for name, at in pointers.items()
                if at.shadow is not None and at.shadow != at.version
            }
            unreadable = {
                name: policy.why
                for name, policy in in_force.items()
                if name in pointers and isinstance(policy, Unreadable)
            }
            self._view = _View(read_at, pointers, _known(in_force), unreadable, _known(shadows))

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        self._thread.join()

    def _fresh(self) -> _View:
        view = self._view
        if time.monotonic() - view.read_at > self.stale_s:
            raise StoreUnavailable(
                f"the policies in force could not be read for {self.stale_s:g} s: nothing leaves "
                "while nobody can tell what is switched off"
            )
        return view

    def _named(self, view: _View, name: str) -> Policy:
        if name not in view.pointers:
            raise PolicyNotFound(
                f"no policy {shown(name)} (there are {', '.join(self.policies)})", "policy"
            )
        policy = view.policies.get(name)
        if policy is None:
            raise StoreUnavailable(
                f"policy {name!r} cannot be read, so nothing leaves under it; the log holds its "
                "cause"
            )
        return policy

    def _read(self, name: str, number: int) -> Policy | Unreadable:
        """A version, which never changes: read once. One that cannot be read stops no other."""
        key = name, number
        if key not in self._versions:
            policy = stored(self._store, name, number)
            if isinstance(policy, Policy):
                # What the model takes, its bundle says today; the store has what it said once.
                here = self._inputs.get(policy.settings.model, policy.inputs)
                policy = replace(policy, inputs=here)
                try:
                    self.require_compatible(policy)
                except BackendUnavailable as error:
                    log.error("%s", error)
            self._versions[key] = policy
        return self._versions[key]

    def _poll(self) -> None:
        failing = False
        while not self._closing.wait(self._poll_s):
            try:
                self.refresh()
            except Exception as error:  # asked again; meanwhile `get` and `check` fail closed
                if not failing:
                    log.error("the policies in force cannot be read", exc_info=error)
                failing = True
            else:
                if failing:
                    log.info("the policies in force can be read again")
                failing = False

    def _log_differences(self) -> None:
        in_force = self._view.policies
        differ = [
            f"{name} (version {self._view.pointers[name].version} is in force)"
            for name, seed in self.seeds.items()
            if name not in in_force or not _as_configured(in_force[name], seed)
        ]
        if differ:
            log.warning(
                "the configuration says otherwise of %s: the store wins. To put what the "
                "configuration says in force: `winnow policies add NAME` and `winnow policies "
                "promote NAME VERSION`",
                ", ".join(differ),
            )


def parse(version: Version) -> Policy | None:
    """The policy of a stored version, by the store's name and number for it; None if unreadable."""
    policy = read(version)
    return policy if isinstance(policy, Policy) else None


def read(version: Version) -> Policy | Unreadable:
    """The policy of a stored version, or why this Winnow cannot read it."""
    try:
        policy = from_document(version.document)
    except Exception as error:  # whatever is wrong with it, it is no policy
        log.error("policy %r version %d: %s", version.name, version.version, error)
        return Unreadable(str(error))
    return replace(policy, name=version.name, version=version.version, reward=version.reward)


def stored(store: Store, name: str, number: int) -> Policy | Unreadable:
    """A version of the store, or why it cannot be read. Raises StoreUnavailable."""
    try:
        return read(store.policies.read(name, number))
    except PolicyNotFound as error:
        log.error("policy %r version %d: %s", name, number, error)
        return Unreadable(str(error))


def refuse_incompatible_policies(store: Store, seeds: Mapping[str, Policy]) -> None:
    """Raises ConfigError where the store has one of these names for a model that is not served.

    The store wins over the configuration, so nothing could ever leave under that name.
    """
    served = {seed.settings.model for seed in seeds.values()}
    for name, at in store.policies.pointers().items():
        if name not in seeds:
            continue
        policy = stored(store, name, at.version)
        if isinstance(policy, Policy) and policy.settings.model not in served:
            raise ConfigError(
                f"policies.{name}: the store has a policy of this name, for model "
                f"{policy.settings.model!r}, which is not served here: give it another name, or "
                "give this service a store of its own (store.url and store.blobs_url)"
            )


def _seed(store: Store, seeds: Mapping[str, Policy]) -> None:
    documents = {name: to_document(policy) for name, policy in seeds.items()}
    for tries_left in reversed(range(SEEDING_TRIES)):
        try:
            store.policies.seed(documents, "configuration")
            return
        except StoreUnavailable:
            # Another replica may be putting the same names there this moment.
            if not tries_left:
                raise
            time.sleep(SEEDING_WAIT_S)


def _as_configured(policy: Policy, seed: Policy) -> bool:
    if seed.awaits_reward and not policy.awaits_reward:
        # It has got the reward that it waited for.
        return policy.settings == seed.settings
    return replace(policy, version=seed.version) == seed


def _refuse_disabled(pointer: Pointer) -> None:
    if pointer.disabled:
        raise PolicyDisabled(f"policy {pointer.name!r} was switched off", "policy")


def _refuse_switched(begun: Pointer, view: _View) -> None:
    now = view.pointers.get(begun.name)
    if now is None:
        raise PolicyDisabled(f"policy {begun.name!r} is gone from the store")
    for pointer in (begun, now):
        _refuse_disabled(pointer)
    if now.off != begun.off:
        raise PolicyDisabled(
            f"policy {begun.name!r} was switched off since this request began", "policy"
        )


def _known(policies: Mapping[str, Policy | Unreadable]) -> dict[str, Policy]:
    return {name: policy for name, policy in policies.items() if isinstance(policy, Policy)}
