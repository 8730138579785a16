"""`/v1/policies/…`: new versions, and which of them is in force. All that is mutable here is that.

The networks of a version are in every replica before it is promoted; requests that run keep their
plan.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from service.api.auth import Caller, person
from service.api.context import Context
from service.api.promotion import (
    refuse_looser,
    refuse_own,
    refuse_uncalibrated,
    version_before,
)
from service.api.schemas import PolicyRequest, PromoteRequest, ShadowRequest
from service.api.text import Text
from service.errors import Conflict, InvalidValue, PolicyNotFound, WinnowError
from service.live import parse
from service.policy import Policy, derive, to_document
from service.store.policies import Pointer, Version

log = logging.getLogger("winnow.policies")


def routes(context: Context) -> APIRouter:
    """The routes that change what is in force, and tell what was."""
    router = APIRouter()
    store, live = context.store.policies, context.live

    def pointer(name: str) -> Pointer:
        found = store.pointers().get(name)
        if found is None:
            raise PolicyNotFound(f"no policy {name!r} is in force", "policy")
        return found

    def readable(version: Version) -> Policy:
        policy = parse(version)
        if policy is None:
            raise Conflict(
                f"policy {version.name!r} version {version.version} was written by another Winnow, "
                "and this one cannot read it"
            )
        return policy

    def refuse_unfit(wanted: Policy, caller: Caller) -> None:
        """What holds for whatever comes into force, by a promotion or by a rollback."""
        live.fits(wanted)
        refuse_uncalibrated(wanted)
        if wanted.name == context.settings.default_policy and not wanted.censors:
            raise Conflict(f"{wanted.name!r} is the default policy, which must censor")
        numbers = {move["detail"]["version"] for move in store.moves(wanted.name)}
        earlier = [parse(store.read(wanted.name, number)) for number in sorted(numbers)]
        refuse_looser(wanted, [one for one in earlier if one is not None], caller)

    # Not async where nothing is awaited: FastAPI gives these a thread, and the store blocks.
    @router.post("/v1/policies", summary="A new version, not in force yet", status_code=201)
    def add(body: PolicyRequest, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("label", "approve")
        if body.reward is None:
            policy = _configured(context, body.name, body.based_on)
        else:
            base = readable(store.read(body.based_on, pointer(body.based_on).version))
            policy = replace(_trained(context, base, body.reward), name=body.name)
        by = person(request)
        number = store.add(body.name, to_document(policy), body.reward, by)
        scores = caller.has("scores") or caller.has("approve")
        return _described(replace(policy, version=number), scores) | {"created_by": by}

    @router.post("/v1/policies/{name}/promote", summary="Put a version in force")
    async def promote(name: Text, body: PromoteRequest, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("approve")

        def look() -> tuple[Pointer | None, Policy]:
            before = store.pointers().get(name)
            wanted = readable(store.read(name, body.version))
            refuse_unfit(wanted, caller)
            if wanted.reward is not None and not context.settings.feedback.self_approval:
                trained_by = context.store.rewards.read(wanted.reward).created_by
                refuse_own(wanted, trained_by, caller)
            return before, wanted

        before, wanted = await asyncio.to_thread(look)
        await context.warm(wanted)
        now = await asyncio.to_thread(
            _moved, context, name, before, wanted.version, person(request), "policy.promote"
        )
        return _pointer(now)

    @router.post("/v1/policies/{name}/rollback", summary="Put the version before in force again")
    async def rollback(name: Text, request: Request) -> dict[str, Any]:
        caller: Caller = request.state.caller
        caller.require("approve")

        def look() -> tuple[Pointer, Policy]:
            before = pointer(name)
            if before.disabled:
                raise Conflict(
                    f"policy {name!r} is switched off: promote a version to switch it on"
                )
            number = version_before(store.moves(name))
            if number is None:
                raise Conflict(f"policy {name!r} has had no version in force before this one")
            wanted = readable(store.read(name, number))
            refuse_unfit(wanted, caller)
            return before, wanted

        before, wanted = await asyncio.to_thread(look)
        try:
            await context.warm(wanted)
        except WinnowError as error:
            # What is in force may be what breaks the replicas; they load the other when they are
            # asked for it, and nothing leaves without it.
            log.warning("policy %r goes back to version %d cold: %s", name, wanted.version, error)
        now = await asyncio.to_thread(
            _moved, context, name, before, wanted.version, person(request), "policy.rollback"
        )
        return _pointer(now)

    @router.post("/v1/policies/{name}/disable", summary="Switch a policy off everywhere")
    def disable(name: Text, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        now = store.disable(name, person(request))
        _seen(context)
        return _pointer(now)

    @router.post("/v1/policies/{name}/shadow", summary="Let a version score, and decide nothing")
    async def shadow(name: Text, body: ShadowRequest, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")

        def look() -> tuple[Pointer, Policy | None]:
            before = pointer(name)
            if body.version is None:
                return before, None
            wanted = readable(store.read(name, body.version))
            if wanted.judge is None:
                raise InvalidValue(f"version {body.version} has no judge to score with", "version")
            live.fits(wanted)
            refuse_uncalibrated(wanted)
            return before, wanted

        before, wanted = await asyncio.to_thread(look)
        if wanted is not None:
            await context.warm(wanted)
        now = await asyncio.to_thread(store.shadow, name, before, body.version, person(request))
        await asyncio.to_thread(_seen, context)
        return _pointer(now)

    @router.get("/v1/policies/{name}/versions", summary="All versions, the newest first")
    def versions(name: Text, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        found = store.versions(name)
        if not found:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        now = store.pointers().get(name)
        return {
            "object": "list",
            "in_force": _pointer(now) if now else None,
            "data": [_version(version) for version in found],
        }

    @router.get("/v1/policies/{name}/history", summary="Who changed what, the newest first")
    def history(name: Text, request: Request) -> dict[str, Any]:
        request.state.caller.require("approve")
        found = store.history(name)
        if not found:
            raise PolicyNotFound(f"no policy {name!r}", "policy")
        return {"object": "list", "data": found}

    return router


def _configured(context: Context, name: str, based_on: str) -> Policy:
    """The policy as the configuration file has it now."""
    seeds = context.live.seeds
    if name != based_on or name not in seeds:
        raise InvalidValue(
            "without a reward, a version is what the configuration says of that name: based_on "
            f"must be the same name, one of {', '.join(seeds)}",
            "based_on",
        )
    return seeds[name]


def _trained(context: Context, base: Policy, reward_id: str) -> Policy:
    """A policy with the networks and thresholds of a trained reward."""
    reward = context.store.rewards.read(reward_id)
    if reward.status != "ready":
        raise Conflict(f"reward {reward_id!r} is not ready: it is {reward.status}")
    dataset = context.store.datasets.read(reward.dataset)
    if dataset.model != base.settings.model:
        raise InvalidValue(
            f"reward {reward_id!r} is for model {dataset.model!r}, policy {base.name!r} for "
            f"{base.settings.model!r}",
            "reward",
        )
    return replace(derive(base, reward), question=dataset.question)


def _moved(
    context: Context, name: str, before: Pointer | None, number: int, by: str, action: str
) -> Pointer:
    now = context.store.policies.point(name, before, number, by, action)
    _seen(context)
    log.info("%s of %s to version %d by %s", action, name, number, by)
    return now


def _seen(context: Context) -> None:
    """This replica sees the change at once, the others at their next reading."""
    try:
        context.live.refresh()
    except WinnowError as error:  # the change is made; it is read again half a second later
        log.warning("the policies in force could not be read again at once: %s", error)


def _pointer(pointer: Pointer) -> dict[str, Any]:
    return {"id": pointer.name, "object": "policy.pointer"} | {
        key: getattr(pointer, key) for key in ("version", "disabled", "shadow")
    }


def _described(policy: Policy, scores: bool) -> dict[str, Any]:
    described = {
        "id": policy.name,
        "object": "policy.version",
        "version": policy.version,
        "reward": policy.reward,
        "model": policy.settings.model,
        "question": policy.question,
        "networks": policy.networks,
        "uncalibrated": policy.uncalibrated,
    }
    if scores:
        described["thresholds"] = {
            str(steps): here.threshold for steps, here in policy.operating.items()
        }
    return described


def _version(version: Version) -> dict[str, Any]:
    policy = parse(version)
    known = {"id": version.name, "object": "policy.version", "version": version.version}
    made = {"created": version.created, "created_by": version.created_by}
    return (known if policy is None else _described(policy, scores=True)) | made
