"""Requests and responses on the wire. Unknown fields are refused, never ignored."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from models.noise import MAX_SEED
from service.api.text import Sent, Text
from service.config import Name
from service.encode import to_b64_png
from service.inputs import class_name
from service.policy import Policy
from service.ports import FinishReason
from service.router import ImageOutcome, Outcome


def _number_or_name(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A union's fault would name the kinds that it is not, as if they were fields."""
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("class_label", "must be a class's number or its name") from None


MAX_VERSION = 2**31 - 1
"""What the store's column holds."""

Reported = Literal["malign", "benign"]
ClassLabel = Annotated[int | Annotated[Text, Field(max_length=200)], WrapValidator(_number_or_name)]
MAX_INPUTS = 1000
OnFiltered = Literal["error_if_all", "error_if_any", "never"]


class _Request(Sent):
    model_config = ConfigDict(extra="forbid", strict=True)


class Input(_Request):
    """One input of a dataset or a certificate, drawn as often as its `weight` says."""

    prompt: Text = ""
    negative_prompt: Text = ""
    class_label: ClassLabel | None = None
    guidance_scale: float | None = Field(None, ge=1, allow_inf_nan=False)
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)


Inputs = Annotated[list[Input], Field(max_length=MAX_INPUTS)]


class Censor(_Request):
    """A caller's wishes about censoring: only tighter than the policy, unless an admin's."""

    threshold: float | None = Field(None, gt=0, le=1)
    max_draws: int | None = Field(None, ge=1)
    deadline_s: float | None = Field(None, gt=0)
    on_filtered: OnFiltered = "error_if_all"


class GenerationRequest(_Request):
    """`POST /v1/images/generations`: OpenAI's fields, the de-facto ones, and Winnow's.

    What a model takes of `prompt`, `negative_prompt`, `class_label` and `guidance_scale` stands in
    `GET /v1/models`, and what a policy allows in `GET /v1/policies`.
    """

    prompt: Text = ""
    negative_prompt: Text | None = Field(
        None, description="What the image should not show; needs guidance_scale above 1."
    )
    class_label: ClassLabel | None = Field(
        None, description="A class's number or name; without it each seed draws one."
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        allow_inf_nan=False,
        description="Classifier-free guidance: one that the policy lists; 1 is none.",
    )
    model: str | None = None
    n: int | None = Field(1, ge=1)
    size: str | None = "auto"
    response_format: Literal["b64_json"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    user: str | None = Field(None, max_length=256)
    stream: Literal[False] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = Field(None, ge=1)
    policy: str | None = None
    censor: Censor = Censor()


class ImageUrl(_Request):
    """OpenAI's wrapper around a URL; only `data:` URLs are read, nothing is ever fetched."""

    url: str


class ModerationInput(_Request):
    """One image to score."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ModerationRequest(_Request):
    """`POST /v1/moderations`: `model` names the policy whose judge scores."""

    input: list[ModerationInput] = Field(min_length=1)
    model: str | None = None


class PolicyRequest(_Request):
    """`POST /v1/policies`: without a reward, what the configuration says of that name."""

    name: Name
    based_on: Text
    reward: Text | None = None


class PromoteRequest(_Request):
    """`POST /v1/policies/{name}/promote`: the version that somebody looked at."""

    version: int = Field(ge=1, le=MAX_VERSION)


class ShadowRequest(_Request):
    """`POST /v1/policies/{name}/shadow`: null ends it."""

    version: int | None = Field(ge=1, le=MAX_VERSION)


class CertifyRequest(_Request):
    """`POST /v1/policies/{name}/certify`: the rate to prove, and how sure one wants to be."""

    epsilon: float
    delta: float
    allowed: int = 0
    num_inference_steps: int | None = Field(None, ge=1)
    inputs: Inputs = Field([])


class CertificateBatchRequest(_Request):
    """Images of a certificate to label; `besides` are on the page already."""

    size: int = Field(25, ge=1, le=100)
    besides: list[str] = Field([], max_length=500)


class ImageLabel(_Request):
    """What a person says of one image, after so many milliseconds."""

    image_id: str
    label: Literal["benign", "malign", "unsure"]
    elapsed_ms: int = Field(0, ge=0, le=86_400_000)


class CertificateLabelsRequest(_Request):
    """`POST /v1/certificates/{id}/labels`."""

    labels: list[ImageLabel] = Field(min_length=1, max_length=500)


class ReportRequest(_Request):
    """`POST /v1/decisions/{id}/report`: entry `index` is not what the verdict says."""

    index: int = Field(ge=0)
    label: Reported
    dataset: Text = Field(min_length=1, max_length=64)


class DrawAgainRequest(_Request):
    """`POST /v1/decisions/{id}/draw`: entry `index` is to be looked at."""

    index: int = Field(ge=0)


class AbandonRequest(_Request):
    """`POST /v1/certificates/{id}/abandon`: the reason stays on record."""

    reason: Text = Field(min_length=1, max_length=500)


def generation(
    decision_id: str, policy: Policy, outcome: Outcome, scores: bool, certified: bool
) -> dict[str, Any]:
    """The body of a response; `scores` says whether the key may see scores and thresholds.

    `certified` says whether a passed certificate covers this very request.
    """
    plan = outcome.plan
    return {
        "id": decision_id,
        "created": int(time.time()),
        "model": plan.model,
        "policy": {
            "id": policy.name,
            "version": plan.policy_version,
            "guide": plan.guide,
            "judge": plan.judge,
            "certified": certified,
        },
        "data": [_entry(outcome, image, scores, policy) for image in outcome.images],
        "usage": {
            "images_requested": len(outcome.images),
            "images_returned": outcome.delivered,
            "images_censored": outcome.count(FinishReason.CONTENT_FILTERED),
            "draws": outcome.draws,
            "nfe": outcome.nfe,
        },
        "timings": {
            "queue_s": round(outcome.queue_s, 4),
            "denoise_s": round(outcome.denoise_s, 4),
            "judge_s": round(outcome.judge_s, 4),
        },
    }


def _entry(outcome: Outcome, image: ImageOutcome, scores: bool, policy: Policy) -> dict[str, Any]:
    plan = outcome.plan
    assert image.finish_reason is not None, "an outcome has settled every entry"
    verdicts: dict[str, Any] = {}
    if plan.judge is not None:
        verdict: dict[str, Any] = {"filtered": image.finish_reason is FinishReason.CONTENT_FILTERED}
        if scores:
            verdict |= {"benign_score": image.score, "threshold": plan.threshold}
        verdicts[plan.policy] = verdict
    label = plan.condition.label(image.seed)
    shown: dict[str, Any] = {}
    if label is not None:
        shown = {"class_label": label, "class_name": class_name(label, policy.inputs)}
    return {
        "index": image.index,
        "b64_json": None if image.pixels is None else to_b64_png(image.pixels),
        "seed": image.seed,
        "finish_reason": image.finish_reason.value,
        "draws": image.draws,
        "content_filter_results": verdicts,
        **shown,
    }
