"""What an adapter says of a family of models: how prompts, latents and positions are laid out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from models.diffusion.conditioning import Named

Config = Mapping[str, Any]
Guidance = Literal["classifier-free", "embedded", "none"]


@dataclass(frozen=True)
class Latents:
    """x_t is [channels, H/factor, W/factor] of an image [H, W], both multiples of `multiple`; a
    position of the denoiser covers `patch` × `patch` of it."""

    channels: int
    factor: int
    multiple: int
    patch: int


@dataclass(frozen=True)
class Family:
    """One family.

    `pipeline` is the class of diffusers whose text encoding and packing it uses, `autoencoder` that
    of its autoencoder. `text` maps each text encoder to the classes that it may be, `optional` are
    components that a model may lack. `guidance` says from (denoiser's config, model_index.json) how
    a guidance scale acts, and `guidance_scale` and `steps` are the pipeline's defaults.

    `latents` reads off (denoiser's config, autoencoder's config) how x_t is laid out. `embed` turns
    one prompt, a negative one or not, into the denoiser's inputs without the batch's axis, by the
    loaded pipeline; inputs in `masks` may differ in length from row to row (see
    `conditioning.Encoded`). `tokens` counts those of a prompt, and `max_tokens` says, from the
    components that a model has, how many are read.
    `denoise` calls the denoiser at x_t [B, C, H, W] and timesteps [B] in [0, 1000], and returns
    [B, C, H, W].

    `unfit` says why a denoiser of the class, by its configuration, is not of the family.
    `spacing` says how the pipeline calls its scheduler (see `spacing.PIPELINE`). `offset` is what
    classifier-free guidance adds to a scale above 1; `rescaled_patch` above 0 says that a
    guided patch of so many latents each way keeps the norm that it has with the prompt alone.
    """

    name: str
    pipeline: str
    autoencoder: str
    text: Mapping[str, tuple[str, ...]]
    guidance: Callable[[Config, Config], Guidance]
    guidance_scale: float
    steps: int
    latents: Callable[[Config, Config], Latents]
    embed: Callable[[Any, str, bool], Named]
    tokens: Callable[[Any, str], int]
    max_tokens: Callable[[Collection[str]], int]
    denoise: Callable[[Any, Tensor, Tensor, Named], Tensor]
    optional: frozenset[str] = frozenset()
    masks: Mapping[str, str] = field(default_factory=dict)
    spacing: Mapping[str, str] = field(default_factory=dict)
    unfit: Callable[[Config], str | None] = lambda denoiser: None
    offset: float = 0.0
    rescaled_patch: int = 0


def classifier_free(denoiser: Config, index: Config) -> Guidance:
    """Two evaluations a step, with and without the prompt."""
    return "classifier-free"


def embedded(denoiser: Config, index: Config) -> Guidance:
    """An input, where the denoiser was distilled to take one; else none."""
    return "embedded" if denoiser.get("guidance_embeds") else "none"


def halvings(config: Config, key: str = "block_out_channels") -> int:
    """How many times smaller latents are: each level of an autoencoder but the last halves."""
    return int(2 ** (len(config[key]) - 1))


def rows(values: Mapping[str, Tensor | None]) -> Named:
    """The one row of each, without the batch's axis; without what is None."""
    return {name: value[0] for name, value in values.items() if value is not None}


def chat(tokenizer: Any, prompt: str, thinking: bool) -> str:
    """A prompt as the user's turn of a conversation."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    return text


def count(tokenizer: Any, text: str) -> int:
    """Tokens, marks of beginning and end included."""
    return len(tokenizer(text, truncation=False, verbose=False).input_ids)
