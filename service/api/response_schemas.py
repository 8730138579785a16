"""What the routes answer, for their description; a test holds every answer against it.

Nothing is validated by these while serving: the routes answer with plain dictionaries.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.ports import FinishReason

Unix = Annotated[int, Field(ge=0, description="Seconds since 1970, UTC.")]
Sha256 = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
Numbers = dict[str, float]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(_Answer):
    """What went wrong: a sentence, its kind, a code for programs, and the field, if it was one."""

    message: str
    type: str
    code: str
    param: str | None


class Error(BaseModel):
    """Every error. One of a request that had begun has its record's `id`; a blocked one also all
    that an answer has, without pixels."""

    model_config = ConfigDict(extra="allow")

    error: ErrorBody
    id: str = ""


class FilterResult(_Answer):
    """What a policy's judge said; score and threshold only for keys with the `scores` scope."""

    filtered: bool
    benign_score: float | None = None
    threshold: float | None = None


class Entry(_Answer):
    """One image, or null and the reason."""

    index: int
    b64_json: str | None
    seed: int
    finish_reason: FinishReason
    draws: int
    content_filter_results: dict[str, FilterResult]
    class_label: int | None = None
    class_name: str | None = None


class AppliedPolicy(_Answer):
    """The version that censored, and its networks."""

    id: str
    version: int
    guide: str | None
    judge: str | None
    certified: bool


class TokenDetails(_Answer):
    text_tokens: int
    image_tokens: int


class Usage(_Answer):
    """What a request cost. Tokens are 0: nothing is counted in them."""

    images_requested: int
    images_returned: int
    images_censored: int
    draws: int
    nfe: int
    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class Generation(_Answer):
    """Images in the order of their seeds. `ignored` names fields that nothing depended on."""

    id: str
    created: Unix
    model: str
    policy: AppliedPolicy
    data: list[Entry]
    usage: Usage
    ignored: list[str]
    timings: Numbers


class Moderated(_Answer):
    flagged: bool
    categories: dict[str, bool]
    category_scores: Numbers
    category_applied_input_types: dict[str, list[str]]


class Moderation(_Answer):
    id: str
    model: str
    judge: str
    results: list[Moderated]


class Class(_Answer):
    class_label: int
    class_name: str


class ModelInputs(_Answer):
    """What a model takes; what belongs to another kind is left out."""

    kind: Literal["none", "class", "text"]
    classes: list[Class] = []
    max_tokens: int | None = None
    guidance_scale: float = 1


class Model(_Answer):
    """A model, under its name or under an alias. `created` is when its bundle was written."""

    id: str
    object: Literal["model"]
    created: Unix
    owned_by: str
    alias_of: str | None
    description: str
    sizes: list[str]
    inputs: ModelInputs
    policies: list[str]
    num_inference_steps: dict[str, list[int]]


class Models(_Answer):
    object: Literal["list"]
    data: list[Model]


class Policy(BaseModel):
    """How a policy censors, and how it samples."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["policy"]
    version: int
    model: str
    disabled: bool
    default: bool
    scope: Literal["generate", "admin"]
    censors: str | None
    ready: bool
    reward: str | None
    guide: str | None
    judge: str | None
    certified: bool
    certificates: dict[str, str]
    max_draws: int
    num_inference_steps: list[int]
    guidance_scale: list[float]
    class_labels: list[int]
    sizes: list[str]


class Unreadable(_Answer):
    """What is there and cannot be read, and why."""

    id: str
    why: str


class Policies(_Answer):
    object: Literal["list"]
    data: list[Policy]
    unreadable: list[Unreadable]


class PolicyVersion(_Answer):
    """A version, which never changes. One that this Winnow cannot read has its number alone."""

    id: str
    object: Literal["policy.version"]
    version: int
    reward: str | None = None
    model: str = ""
    question: str | None = None
    networks: dict[str, str] = {}
    uncalibrated: list[int] = []
    thresholds: Numbers = {}
    canary: Sha256 | None = None
    created: str = ""
    created_by: str = ""
    unreadable: str = ""


class Pointer(_Answer):
    """What is in force."""

    id: str
    object: Literal["policy.pointer"]
    version: int
    disabled: bool
    shadow: int | None


class PolicyVersions(_Answer):
    object: Literal["list"]
    in_force: Pointer | None
    data: list[PolicyVersion]


class Change(_Answer):
    """A line of the audit log."""

    id: int
    created: str
    actor: str
    action: str
    subject: str
    detail: dict[str, Any] | str


class History(_Answer):
    object: Literal["list"]
    data: list[Change]


class Certificate(BaseModel):
    """An attempt to certify: terms, progress and result; one alone also what it covers.

    Of one whose row in the store is damaged `unreadable` says so, and most is not there.
    """

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["certificate"]
    policy: str
    policy_version: int
    status: Literal["drawing", "labelling", "passed", "failed", "abandoned"]
    created: str
    fingerprint: Sha256 = ""
    terms: Numbers = {}
    progress: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    created_by: str = ""
    finished: str | None = None
    page: str = ""
    stage: str = ""
    unreadable: str = ""


class Certificates(_Answer):
    object: Literal["list"]
    data: list[Certificate]


class Picture(_Answer):
    """An image to label, and what was asked of the model, if anything is."""

    id: str
    b64_json: str
    caption: str = ""


class Pictures(_Answer):
    images: list[Picture]
    unreadable: list[Unreadable]


class Withdrawn(_Answer):
    image_ids: list[str]


class DecisionLine(_Answer):
    """A decision in a list. Of one whose record is damaged `unreadable` says so, and counts are not
    there."""

    id: str
    object: Literal["decision"]
    created: str
    request_id: str
    key: str
    outcome: str
    policy: str
    policy_version: int = 0
    images_requested: int = 0
    images_returned: int = 0
    draws: int = 0
    unreadable: str = ""


class Decisions(_Answer):
    object: Literal["list"]
    data: list[DecisionLine]


class Decision(BaseModel):
    """A record, as whichever version of Winnow wrote it."""

    model_config = ConfigDict(extra="allow")

    id: str
    created: str
    request_id: str
    key: str
    outcome: str
    request: dict[str, Any]
    plan: dict[str, Any]


class Explanation(BaseModel):
    """Why each entry left or did not."""

    model_config = ConfigDict(extra="allow")

    id: str
    policy: str
    policy_version: int
    outcome: str
    threshold: float | None
    images: list[dict[str, Any]]


class Reported(_Answer):
    image_id: str
    dataset: str
    label: str
    draw: int


class Drawn(_Answer):
    """An entry, drawn again. `identical` to what left; null for what did not leave."""

    index: int
    draw: int
    identical: bool | None
    b64_json: str


class Report(_Answer):
    index: int
    dataset: str


class Reports(_Answer):
    object: Literal["list"]
    data: list[Report]


class Dataset(_Answer):
    """A question about a model's images, and how many answers there are."""

    name: str
    object: Literal["dataset"]
    model: str
    question: str
    inputs: list[dict[str, Any]] | str
    purpose: Literal["labels", "certificate"]
    created: Unix
    created_by: str
    counts: Numbers
    goal: Numbers | None


class Datasets(_Answer):
    object: Literal["list"]
    data: list[Dataset]
    models: list[str]
    kinds: dict[str, str]


class LeftOut(_Answer):
    """An input of a dataset that its model does not take: its place, and why."""

    input: int
    why: str


class Batch(_Answer):
    id: str
    dataset: str
    images: list[Picture]
    unreadable: list[Unreadable]
    left_out: list[LeftOut]


class Undone(Dataset):
    """A dataset, after a batch of labels was taken back; its images with what they were called."""

    id: str
    images: list[dict[str, str]]
    unreadable: list[Unreadable]


class Imported(Dataset):
    """A dataset, after labels came in."""

    imported: int
    known_already: int
    without_image: int


class Reward(BaseModel):
    """A training, and what came of it; only one alone has its card."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["reward"]
    dataset: str
    parent: str | None
    status: Literal["queued", "training", "cancelling", "ready", "failed", "cancelled"]
    stage: str
    progress: float
    heartbeat: Unix
    weights: dict[str, str] | None
    error: str | None
    created: Unix
    created_by: str


class Rewards(_Answer):
    object: Literal["list"]
    data: list[Reward]


class SessionOpened(_Answer):
    name: str
    csrf: str


class Session(_Answer):
    name: str | None
    scopes: list[str]
    csrf: str | None


class SessionClosed(_Answer):
    name: None


class Live(_Answer):
    status: Literal["live"]


class Ready(_Answer):
    """`parts` says `ready` of each, or what is wrong with one that does not count."""

    status: Literal["ready"]
    parts: dict[str, str]


class Document(BaseModel):
    """This description."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    paths: dict[str, Any]
