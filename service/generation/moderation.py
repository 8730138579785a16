"""Moderation: images from elsewhere, scored by a policy's judge."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.bundles.manifest import Manifest
from service.config import Settings
from service.errors import CensorUnavailable, InvalidValue, PolicyNotFound, WinnowError, shown
from service.images.encode import from_data_url
from service.judge.verdict import usable
from service.policies.canary import Canaries
from service.policies.policy import Policy
from service.policies.registry import PolicyRegistry
from service.ports import JudgeClient


@dataclass(frozen=True)
class Moderated:
    """What a policy's judge said of each image: below `threshold` it is flagged."""

    policy: str
    judge: str
    threshold: float
    scores: Sequence[float]


@dataclass(frozen=True)
class ModerationService:
    """Scores what comes from elsewhere. A score is an oracle for getting past the judge: not for
    everybody."""

    settings: Settings
    manifests: Mapping[str, Manifest]
    policy_registry: PolicyRegistry
    canaries: Canaries
    judge_client: JudgeClient

    async def moderate(self, name: str | None, urls: Sequence[str]) -> Moderated:
        """The scores of the images of these data URLs, by the policy of this name or the default.

        Raises PolicyNotFound and what keeps the policy from judging, InvalidValue for the first
        image that is none, and CensorUnavailable.
        """
        policy, judge = self._judging(self.settings.default_policy if name is None else name)
        limit = self.settings.limits.moderation_inputs
        if len(urls) > limit:
            raise InvalidValue(f"input: has {len(urls)} images, the limit is {limit}", "input")
        model = policy.settings.model
        shape = self.manifests[model].backbone.image
        # Decoding takes the time of many requests: not on the event loop.
        pixels = await asyncio.to_thread(
            lambda: [
                from_data_url(url, *shape, f"input.{index}.image_url.url")
                for index, url in enumerate(urls)
            ]
        )
        await self.canaries.admit(policy)
        timeout_s = self.settings.models[model].judge.timeout_s
        scored = await self.judge_client.score(model, judge, pixels, timeout_s)
        if len(scored) != len(pixels):
            raise CensorUnavailable(
                f"the judge returned {len(scored)} scores for {len(pixels)} images"
            )
        # An image does not say how many steps made it: the strictest threshold decides.
        threshold = max(here.threshold for here in policy.operating_points.values())
        return Moderated(policy.name, judge, threshold, [usable(score) for score in scored])

    def _judging(self, name: str) -> tuple[Policy, str]:
        """The policy of this name, and its judge. Here a policy is called `model`, as in OpenAI's
        API: faults of it name that field."""
        registry = self.policy_registry
        known = ", ".join(one.name for one in registry.policies.values() if one.censors)
        fault = PolicyNotFound(
            f"no model {shown(name)} scores images: here it is a policy that judges, one of "
            f"{known}",
            "model",
        )
        try:
            policy = registry.get(name)
            policy.refuse_without_reward()
            if policy.judge is None:
                raise fault
            policy.refuse_without_threshold()
        except PolicyNotFound:
            raise fault from None
        except WinnowError as error:
            if error.param == "policy":
                error.param = "model"
            raise
        return policy, policy.judge
