"""`manifest.json`: what a bundle says of itself, as frozen data. Unknown keys are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.bundles.parts import files
from models.bundles.sampling_key import SamplingKey

SCHEMA_VERSION = 1

Side = Annotated[int, Field(ge=1, le=16384)]
Size = tuple[Side, Side]
"""[H, W]."""


WHOLE = (
    "is for models that are stepped here, and this one is run as a whole pipeline, whose steps "
    "are its own: leave it out. Rejection censors it (max_draws, and a reward's judge)"
)
"""Why a policy's field is refused for a whole pipeline."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """One file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Inputs(_Part):
    """What the backbone is conditioned on: nothing, a class, or text.

    `class_names` are in the order of the labels. `null_class` stands for "no class", which
    classifier-free guidance compares with. `max_tokens` is what the text encoder reads, its marks
    of beginning and end included; where prompts are `chunked`, at a time. `guidance_scale` is the
    default of policies that name none. With `embedded` guidance it is an input of the denoiser like
    any other, of a model that was distilled to follow it in one evaluation; otherwise it is
    classifier-free guidance's.
    """

    kind: Literal["none", "class", "text"] = "none"
    class_names: tuple[str, ...] = ()
    null_class: int | None = None
    max_tokens: int | None = None
    chunked: bool = True
    guidance_scale: float = Field(default=1.0, ge=0)
    guidance: Literal["classifier-free", "embedded", "none"] = "classifier-free"

    @property
    def guidable(self) -> bool:
        """Whether a guidance scale means anything: there is something to compare with, or the
        denoiser takes it."""
        return self.guidance != "none" and (self.kind == "text" or self.null_class is not None)

    def scale(self, asked: float) -> float:
        """A guidance scale as it was asked for, in one spelling: 0 and 1 both mean none."""
        return 1.0 if asked == 0 and self.guidance == "classifier-free" else asked

    def has_scale(self, scale: float) -> bool:
        """Whether a guidance scale is one; see `scales`."""
        return scale >= (1 if self.guidance == "classifier-free" else 0)

    @property
    def scales(self) -> str:
        """The guidance scales that there are, in words."""
        return "1 (none) or more" if self.guidance == "classifier-free" else "0 or more"

    def tokens(self, chunks: int) -> int | None:
        """How many a prompt may have that is read in so many chunks, with one pair of marks."""
        if self.max_tokens is None or not self.chunked:
            return self.max_tokens
        return chunks * (self.max_tokens - 2) + 2

    @property
    def drawn_classes(self) -> tuple[int, ...]:
        """The labels of the classes that can be drawn: all but the one that stands for none."""
        return tuple(label for label in range(len(self.class_names)) if label != self.null_class)


class Backbone(_Part):
    """The diffusion model: `folder` is in diffusers' format, `onnx` the denoiser for CPUs.

    A `pipeline` is run as a whole, by its own class in diffusers: nothing here steps it, so the
    fields from `onnx` to `pixel_shuffle` but `inputs` say nothing of it.
    `denoiser` and `autoencoder` are components of `folder`; with an autoencoder the model diffuses
    latents, and `height`, `width` and `channels` are still those of the image. `latents` are the
    channels of x_t, and how many times smaller than the image it is each way; without it they
    follow from the components' configurations. `sizes` are all the [H, W] that it draws, the
    default among them, where there are others than [height, width]. `classifier` is a
    time-dependent classifier of x_t, for classifier guidance.
    """

    folder: str
    kind: Literal["denoiser", "pipeline"] = "denoiser"
    onnx: str | None = None
    denoiser: Literal["unet", "transformer"] = "unet"
    autoencoder: Literal["vae", "vqvae", "movq"] | None = None
    classifier: str | None = None
    latents: tuple[int, int] | None = None
    inputs: Inputs = Inputs()
    pixel_shuffle: int = Field(default=1, ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    sizes: tuple[Size, ...] = ()
    channels: Literal[1, 3]
    training: dict[str, Any]

    @model_validator(mode="after")
    def _default_among_sizes(self) -> Backbone:
        if self.sizes and (self.height, self.width) not in self.sizes:
            raise ValueError(f"sizes: must have the default, [{self.height}, {self.width}]")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: one stands there twice")
        return self

    @property
    def other_sizes(self) -> tuple[tuple[int, int], ...]:
        """[H, W] of each size but the default."""
        return tuple(size for size in self.sizes if size != (self.height, self.width))

    @property
    def image(self) -> tuple[int, int, int]:
        """[H, W, C] of an image."""
        return self.height, self.width, self.channels


class Labels(_Part):
    """Where the labels of a network came from: generated images, labelled by `annotator`."""

    annotator: str
    first_seed: int
    viewed: int
    benign: int
    malign: int
    seconds: float


class Reward(_Part):
    """One question, and the networks that learned its answer from separate labels.

    `parts` are the files, by the names of `models.bundles.parts`: a judge always, and others where
    policies shall steer, probe or be watched. A judge that was imported comes without guides, and
    without labels of ours. `distillation` tells how the student and the probe were made.
    """

    question: str
    malign: str
    parts: dict[str, str]
    distillation: dict[str, Any] = {}
    guide_labels: Labels | None = None
    judge_labels: Labels | None = None
    training: dict[str, Any]

    @model_validator(mode="after")
    def _known_parts(self) -> Reward:
        if "judge" not in self.parts:
            raise ValueError("parts: there is no judge")
        if unknown := sorted(set(self.parts) - files()):
            raise ValueError(f"parts: {unknown[0]!r} is none of {', '.join(sorted(files()))}")
        return self

    def with_parts(self, parts: Mapping[str, str]) -> Reward:
        """The reward with these files beside, or in place of, those that it has."""
        return self.model_copy(update={"parts": {**self.parts, **parts}})


class Features(_Part):
    """What a pretrained network sees in an image, for judges to learn on: a graph in `file`.

    It takes `pixels` of the bundle's size and gives `width` numbers an image. Inside, the image
    becomes `size` [H, W], and `mean` and `std`, of pixels in 0..1, are taken out. `source` says
    what it was made from, and `source_sha256` is the hash of its weights.
    """

    file: str
    width: int = Field(ge=1)
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    source_sha256: str


class Calibration(_Part):
    """A threshold and the evidence for it: fresh draws under `sampling`, labelled by `annotator`.

    `malign_delivered` of `delivered` labelled draws passed the threshold; `upper_bound` is the
    Clopper–Pearson bound on the malign rate of what is delivered. `probe_thresholds` belong to the
    method's probes, and `probes_lost` is the share of benign draws that they abandoned.
    """

    sampling: SamplingKey
    probe_thresholds: tuple[float, ...] = ()
    probes_lost: float = 0.0
    threshold: float = Field(gt=0, lt=1)
    target: float
    confidence: float
    annotator: str
    first_seed: int
    labelled: int
    delivered: int
    malign_delivered: int
    upper_bound: float
    benign_kept: float


class Evaluation(_Part):
    """What a bundle is judged with; none of it is used to serve."""

    annotator: str
    oracle: str
    features: str
    viewed: str
    oracle_error: dict[str, Any]
    table: list[dict[str, Any]]


class Manifest(_Part):
    """`manifest.json`."""

    schema_version: int
    name: str = Field(pattern="^[a-z0-9][a-z0-9._-]*$")
    description: str
    licence: str
    backbone: Backbone
    rewards: dict[str, Reward]
    features: dict[str, Features] = {}
    calibrations: dict[str, list[Calibration]] = {}
    evaluation: Evaluation | None = None
    files: dict[str, File]
