"""Requests on the wire. Unknown fields are refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from models.diffusion.noise import MAX_SEED
from service.api.text import Id, RequestBody, Text
from service.config import Name
from service.generation.order import OnFiltered, Wanted
from service.generation.reports import Reported
from service.policies.inputs import RequestedInputs
from service.policies.policy import Overrides


def _number_or_name(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A union's fault would name the kinds that it is not, as if they were fields."""
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError("class_label", "must be a class's number or its name") from None


def _only(reason: str) -> WrapValidator:
    """Says `reason` of any other value, and of one that is equal alone: 0 is not false."""

    def checked(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            found = validate(value)
        except ValidationError:
            found = None
        if type(found) is not type(value):
            raise PydanticCustomError("unsupported", reason)
        return found

    return WrapValidator(checked)


MAX_VERSION = 2**31 - 1
"""What the store's column holds."""

ClassLabel = Annotated[int | Annotated[Text, Field(max_length=200)], WrapValidator(_number_or_name)]
MAX_INPUTS = 1000
Called = Annotated[str, Field(min_length=1, max_length=64)]
"""The name of a policy or a model: an empty one is not the default's."""


class _Request(RequestBody):
    model_config = ConfigDict(extra="forbid", strict=True)


class Input(_Request):
    """One input of a dataset or a certificate, drawn as often as its `weight` says."""

    prompt: Text = ""
    negative_prompt: Text = ""
    class_label: ClassLabel | None = None
    guidance_scale: float | None = Field(None, ge=0, allow_inf_nan=False)
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
    negative_prompt: Text = Field(
        "", description="What the image should not show; needs guidance_scale above 1."
    )
    class_label: ClassLabel | None = Field(
        None, description="A class's number or name; without it each seed draws one."
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Guidance by the prompt or class: one that the policy lists; 0 and 1 are none.",
    )
    model: Called | None = None
    n: int = Field(1, ge=1)
    size: str = Field("auto", max_length=32)
    response_format: Annotated[
        Literal["b64_json"],
        _only("must be 'b64_json': no image is kept here, so there is no URL to give"),
    ] = "b64_json"
    output_format: Annotated[Literal["png"], _only("must be 'png': images are sent as PNG")] = "png"
    stream: Annotated[Literal[False], _only("must be false: nothing is streamed")] = False
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    num_inference_steps: int | None = Field(None, ge=1)
    policy: Called | None = None
    censor: Censor = Censor()

    # What clients send with their defaults, and what nothing depends on: see `IGNORED`.
    user: str | None = Field(None, max_length=256)
    quality: (
        Annotated[
            Literal["auto", "standard", "high", "hd"],
            _only(
                "must be 'auto', 'standard', 'high' or 'hd', which are one here: "
                "num_inference_steps asks for less work"
            ),
        ]
        | None
    ) = None
    style: (
        Annotated[
            Literal["auto", "vivid", "natural"],
            _only("must be 'auto', 'vivid' or 'natural', which are one here"),
        ]
        | None
    ) = None
    background: (
        Annotated[
            Literal["auto", "opaque"],
            _only("must be 'auto' or 'opaque': no image here is transparent"),
        ]
        | None
    ) = None
    moderation: (
        Annotated[Literal["auto"], _only("must be 'auto': the policy says what is held back")]
        | None
    ) = None
    output_compression: (
        Annotated[
            Annotated[int, Field(ge=0, le=100)],
            _only("must be an integer of 0 to 100, which PNG does not heed: it loses nothing"),
        ]
        | None
    ) = None
    partial_images: (
        Annotated[Literal[0], _only("must be 0: an image leaves once it is judged, and whole")]
        | None
    ) = None

    @property
    def wanted(self) -> Wanted:
        """What is asked for; `IGNORED` are the fields that nothing depends on."""
        return Wanted(
            overrides=Overrides(
                threshold=self.censor.threshold,
                max_draws=self.censor.max_draws,
                num_inference_steps=self.num_inference_steps,
                asked=RequestedInputs(
                    self.prompt, self.negative_prompt, self.class_label, self.guidance_scale
                ),
            ),
            policy=self.policy,
            model=self.model,
            n=self.n,
            size=self.size,
            seed=self.seed,
            deadline_s=self.censor.deadline_s,
            on_filtered=self.censor.on_filtered,
            ignored=[name for name in IGNORED if getattr(self, name) is not None],
        )


IGNORED = (
    "user",
    "quality",
    "style",
    "background",
    "moderation",
    "output_compression",
    "partial_images",
)


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
    model: Called | None = None


class PolicyRequest(_Request):
    """`POST /v1/policies`: without a reward, what the configuration says of that name."""

    name: Name
    based_on: Name
    reward: Id | None = None


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
    """Images of a certificate to label; `exclude_images` are on the page already."""

    size: int = Field(25, ge=1, le=100)
    exclude_images: list[Id] = Field([], max_length=500)


class ImageLabel(_Request):
    """What a person says of one image, after so many milliseconds."""

    image_id: Id
    label: Literal["benign", "malign", "unsure"]
    elapsed_ms: int = Field(0, ge=0, le=86_400_000)


class CertificateLabelsRequest(_Request):
    """`POST /v1/certificates/{id}/labels`."""

    labels: list[ImageLabel] = Field(min_length=1, max_length=500)


class CertificateUndoRequest(_Request):
    """`POST /v1/certificates/{id}/labels/undo`: whose labels; without any, the caller's last."""

    image_ids: list[Id] | None = Field(None, min_length=1, max_length=500)


class ReportRequest(_Request):
    """`POST /v1/decisions/{id}/report`: entry `index` is not what the verdict says."""

    index: int = Field(ge=0)
    label: Reported
    dataset: Id


class DrawAgainRequest(_Request):
    """`POST /v1/decisions/{id}/draw`: entry `index` is to be looked at."""

    index: int = Field(ge=0)


class AbandonRequest(_Request):
    """`POST /v1/certificates/{id}/abandon`: the reason stays on record."""

    reason: Text = Field(min_length=1, max_length=500)
