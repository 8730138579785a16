"""Condition encoders: to class labels, or to the embeddings of a prompt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from models.backbones.families.table import FAMILIES
from models.bundles.manifest import Backbone, Inputs
from models.diffusion.condition import PROMPT_CHUNKS, Condition, ConditionError, Size
from models.diffusion.conditioning import NOTHING, Encoded, Named

KEPT = 256
"""Prompts of one chunk whose embeddings are kept: 61 MB for Stable Diffusion 1.x, 161 MB for XL. Of
longer ones as many as take no more."""
MARKS = 2
"""CLIP's tokens that every chunk begins and ends with."""

Chunks = tuple[tuple[int, ...], ...]
"""A prompt as one tokenizer has it: the tokens of each chunk, with its marks."""


class Encoder(Protocol):
    """Encodes conditions for one denoiser; any thread may call it.

    `slow` says whether it runs a network for what it has not seen before; `example` is a condition
    that it can encode.
    """

    @property
    def slow(self) -> bool: ...

    @property
    def example(self) -> Condition: ...

    def scale(self, condition: Condition) -> float:
        """The scale of classifier-free guidance of a condition's row, which pays for it above 1."""
        return condition.guidance_scale

    def check(self, condition: Condition, seed: int) -> None:
        """Raises ConditionError as `encode` would, and runs no network."""
        ...

    def encode(self, condition: Condition, seed: int) -> Encoded:
        """The condition of the image with this seed. Raises ConditionError, naming the field."""
        ...


class Unconditional(Encoder):
    """For an unconditional denoiser."""

    slow = False
    example = Condition()

    def check(self, condition: Condition, seed: int) -> None:
        """Nothing is asked of it."""

    def encode(self, condition: Condition, seed: int) -> Encoded:
        """Nothing."""
        return NOTHING


class ClassEncoder(Encoder):
    """A class label, and the null class to compare with."""

    slow = False
    example = Condition(class_label=0)

    def __init__(self, inputs: Inputs) -> None:
        self._count = len(inputs.class_names)
        self._null = inputs.null_class

    def check(self, condition: Condition, seed: int) -> None:
        """See `Encoder`."""
        self.encode(condition, seed)

    def encode(self, condition: Condition, seed: int) -> Encoded:
        """`class_labels`, an int64 scalar."""
        label = condition.label(seed)
        if label is None or not 0 <= label < self._count:
            raise ConditionError(f"is {label}, must be 0 to {self._count - 1}", "class_label")
        if self._null is None and condition.guidance_scale > 1:
            raise ConditionError(
                "this model has no null class to guide away from", "guidance_scale"
            )
        null = label if self._null is None else self._null
        return Encoded({"class_labels": torch.tensor(label)}, {"class_labels": torch.tensor(null)})


class PromptEncoder(Encoder):
    """Stable Diffusion's text encoder, or both of Stable Diffusion XL's.

    1.x and 2.x tell the denoiser the last hidden state of one; XL the one before the last of each,
    side by side, and beside them the second's pooled output and the image's size.

    A prompt longer than an encoder reads is cut into chunks of as many tokens as fit between two
    marks (75). Each is encoded alone, and their hidden states stand one after the other; the pooled
    output is the first chunk's. So do compel (`SplitLongTextMode.BRUTAL`), AUTOMATIC1111 and
    ComfyUI, though these two may cut a few tokens earlier, near a comma or between words. As in
    both, a prompt and a negative one of fewer chunks stay as long as each is: nothing is added.

    A latent consistency model's U-Net takes the guidance scale as an input (Luo et al. 2023).
    """

    slow = True
    example = Condition()

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        device: str,
        dtype: torch.dtype = torch.float32,
        chunks: int = PROMPT_CHUNKS,
    ) -> None:
        """`folder` is in diffusers' format; a prompt of more than so many `chunks` is refused."""
        self._device = torch.device(device)
        self.xl = (folder / "text_encoder_2").is_dir()
        self._parts = [
            (
                _tokenizer(folder / f"tokenizer{name}"),
                _text_encoder(folder / f"text_encoder{name}", self._device, dtype),
            )
            for name in (("", "_2") if self.xl else ("",))
        ]
        # Where a tokenizer says more than its encoder has positions, those count.
        self._limit = min(
            min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            for tokenizer, encoder in self._parts
        )
        index = json.loads((folder / "model_index.json").read_text())
        self._zeros = bool(self.xl and index.get("force_zeros_for_empty_prompt", True))
        size = (backbone.height, backbone.width)
        self._time_ids = torch.tensor([*size, 0, 0, *size], device=self._device).float()
        self._embeds_guidance = backbone.inputs.guidance == "embedded"
        unet = json.loads((folder / backbone.denoiser / "config.json").read_text())
        self._guidance_width = int(unet.get("time_cond_proj_dim") or 0)
        self._tokenizing = threading.Lock()
        self._chunks = chunks
        self._kept = lru_cache(KEPT)(self._embed)
        self._kept_long = lru_cache(max(KEPT // chunks, 1))(self._embed)

    def scale(self, condition: Condition) -> float:
        """See `Encoder`."""
        return 1.0 if self._embeds_guidance else condition.guidance_scale

    def check(self, condition: Condition, seed: int) -> None:
        """See `Encoder`: counts tokens."""
        for field in ("prompt", "negative_prompt"):
            try:
                self._read(getattr(condition, field))
            except Unreadable as error:
                raise ConditionError(str(error), field) from None

    def encode(self, condition: Condition, seed: int) -> Encoded:
        """`encoder_hidden_states` [L, D], where L is as many times what an encoder reads as there
        are chunks; with XL `text_embeds` [D] and `time_ids` [6] as well."""
        inputs = self._sized(self._known(condition.prompt, "prompt"), condition.size)
        if self._embeds_guidance:
            told = dict(inputs) | {"timestep_cond": self._guidance(condition.guidance_scale)}
            return Encoded(told, told, MASKS)
        if condition.negative_prompt or not self._zeros:
            negative = self._known(condition.negative_prompt, "negative_prompt")
            return Encoded(inputs, self._sized(negative, condition.size), MASKS)
        # As diffusers' pipeline for XL: no negative prompt is no embedding, not that of "".
        none = {name: torch.zeros_like(value) for name, value in inputs.items()}
        return Encoded(inputs, none | {"time_ids": inputs["time_ids"]}, MASKS)

    def _sized(self, inputs: Named, size: Size) -> Named:
        """What was kept, for an image of this size."""
        if not self.xl or size is None:
            return inputs
        time_ids = torch.tensor([*size, 0, 0, *size], device=self._device).float()
        return {**inputs, "time_ids": time_ids}

    def _guidance(self, scale: float) -> torch.Tensor:
        """The embedding of a guidance scale, float32 [D]."""
        from diffusers import LatentConsistencyModelPipeline as Pipeline

        weight = torch.tensor([scale - 1.0])
        # It reads nothing of the pipeline itself.
        embedding = Pipeline.get_guidance_scale_embedding(None, weight, self._guidance_width)
        found: torch.Tensor = embedding[0].to(self._device)
        return found

    def _known(self, prompt: str, field: str) -> Named:
        try:
            parts = self._read(prompt)
        except Unreadable as error:
            raise ConditionError(str(error), field) from None
        return (self._kept if len(parts[0]) == 1 else self._kept_long)(parts)

    @torch.no_grad()
    def _embed(self, parts: tuple[Chunks, ...]) -> Named:
        hidden, pooled = [], None
        for chunks, (tokenizer, encoder) in zip(parts, self._parts, strict=True):
            tokens = tokenizer.pad(
                {"input_ids": [list(chunk) for chunk in chunks]},
                padding="max_length",
                max_length=self._limit,
                return_tensors="pt",
            ).to(self._device)
            masked = getattr(encoder.config, "use_attention_mask", False) and not self.xl
            output = encoder(
                tokens.input_ids,
                attention_mask=tokens.attention_mask if masked else None,
                output_hidden_states=self.xl,
            )
            states = output.hidden_states[-2] if self.xl else output[0]
            hidden.append(states.flatten(0, 1))
            pooled = output[0][0] if self.xl else None
        found = {"encoder_hidden_states": torch.cat(hidden, dim=-1).float()}
        if pooled is None:
            return found
        return found | {"text_embeds": pooled.float(), "time_ids": self._time_ids}

    def _read(self, prompt: str) -> tuple[Chunks, ...]:
        """The chunks of each tokenizer, equally many. Raises Unreadable."""
        room = self._limit - MARKS
        most = self._chunks * room + MARKS
        found, ends = [], []
        for tokenizer, _ in self._parts:
            # A tokenizer keeps settings from one call to the next: two threads would mix them up.
            with self._tokenizing, reading():
                begin, *tokens, end = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if (count := len(tokens) + MARKS) > most:
                chunks = f" in {self._chunks} chunks of {room}" if self._chunks > 1 else ""
                raise Unreadable(
                    f"has {count} tokens, {count - most} more than the {most} that this model's "
                    f"text encoder reads{chunks} (the marks of beginning and end count): shorten it"
                )
            starts = range(0, max(len(tokens), 1), room)
            found.append([(begin, *tokens[start : start + room], end) for start in starts])
            ends.append((begin, end))
        longest = max(map(len, found))
        # Tokenizers of two vocabularies may differ in how many they need.
        return tuple(
            tuple(chunks + [empty] * (longest - len(chunks)))
            for chunks, empty in zip(found, ends, strict=True)
        )


MASKS = {"encoder_hidden_states": "encoder_attention_mask"}
"""Prompts of more chunks are longer."""


class Unreadable(ValueError):
    """A prompt that a tokenizer or its text encoder cannot read."""


@contextmanager
def reading() -> Iterator[None]:
    """Whatever a tokenizer raises is about the text that it was given, and may repeat it."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        name = type(error).__name__
        raise Unreadable(f"cannot be read by this model's tokenizer ({name})") from None


def load_encoder(
    folder: Path,
    backbone: Backbone,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    prompt_chunks: int = PROMPT_CHUNKS,
) -> Encoder:
    """The encoder of a bundle's backbone; a prompt may take so many chunks."""
    if backbone.inputs.kind == "class":
        return ClassEncoder(backbone.inputs)
    config = folder / backbone.denoiser / "config.json"
    if (name := json.loads(config.read_text()).get("_class_name")) in FAMILIES:
        # It imports this module.
        from models.backbones.families.encoder import FamilyEncoder

        return FamilyEncoder(FAMILIES[name], folder, backbone.inputs, device, dtype)
    if backbone.inputs.kind == "text":
        return PromptEncoder(folder, backbone, device, dtype, prompt_chunks)
    return Unconditional()


def _tokenizer(folder: Path) -> Any:
    # Seconds to import, which a model without text need not spend.
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _text_encoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    if name not in TEXT_ENCODERS:
        raise ValueError(f"{folder}: {name} is not one of {', '.join(TEXT_ENCODERS)}")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    encoder = getattr(transformers, name).from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    return encoder.to(device).eval().requires_grad_(False)


TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
