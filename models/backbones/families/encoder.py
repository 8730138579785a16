"""Prompts of a family, encoded by its own pipeline in diffusers: no denoiser, no autoencoder."""

from __future__ import annotations

import json
import logging
import threading
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from models.backbones.encoders import KEPT, Encoder, Unreadable, reading
from models.backbones.families.family import Family
from models.bundles.manifest import Inputs
from models.diffusion.condition import Condition, ConditionError
from models.diffusion.conditioning import Encoded, Named


class FamilyEncoder(Encoder):
    """Encodes prompts as the family's pipeline does; one that is too long is refused."""

    slow = True
    example = Condition()

    def __init__(
        self,
        family: Family,
        folder: Path,
        inputs: Inputs,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`folder` is in diffusers' format."""
        import diffusers
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        # What they warn of repeats parts of a prompt.
        logging.getLogger("diffusers.pipelines").setLevel(logging.ERROR)
        self._family, self._inputs = family, inputs
        absent = [
            one
            for name in family.optional
            for one in (name, name.replace("text_encoder", "tokenizer"))
            if not (folder / name).is_dir()
        ]
        self._pipeline = getattr(diffusers, family.pipeline).from_pretrained(
            folder,
            transformer=None,
            vae=None,
            scheduler=None,
            **dict.fromkeys(absent),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
        )
        self._pipeline.to(device)
        config = json.loads((folder / "transformer" / "config.json").read_text())
        # Some pipelines read their denoiser's configuration while they encode.
        object.__setattr__(
            self._pipeline, "transformer", SimpleNamespace(config=SimpleNamespace(**config))
        )
        self._working = threading.Lock()
        self._kept = lru_cache(KEPT)(self._embed)
        # So that a prompt that is known does not wait for one that is being encoded.
        self._counted = lru_cache(KEPT)(self._count)

    def scale(self, condition: Condition) -> float:
        """See `Encoder`: embedded guidance costs no second row."""
        if self._inputs.guidance != "classifier-free" or condition.guidance_scale <= 1:
            return 1.0
        return condition.guidance_scale + self._family.offset

    def check(self, condition: Condition, seed: int) -> None:
        """See `Encoder`: counts tokens."""
        for field in ("prompt", "negative_prompt"):
            try:
                found = self._counted(getattr(condition, field))
                if found > (most := self._inputs.max_tokens or found):
                    raise Unreadable(
                        f"has {found} tokens, {found - most} more than the {most} that this "
                        f"model's text encoder reads (the marks of beginning and end count): "
                        "shorten it"
                    )
            except Unreadable as error:
                raise ConditionError(str(error), field) from None

    def encode(self, condition: Condition, seed: int) -> Encoded:
        """The inputs that the family's `embed` gives; `guidance`, a scalar, where it is embedded.

        A row without classifier-free guidance is compared with nothing: its negative is itself.
        """
        self.check(condition, seed)
        inputs = dict(self._kept(condition.prompt, False))
        if self._inputs.guidance == "embedded":
            inputs["guidance"] = torch.tensor(condition.guidance_scale)
        negative: Named = inputs
        if self.scale(condition) > 1:
            negative = self._kept(condition.negative_prompt, True)
        return Encoded(inputs, negative, self._family.masks, self._family.rescaled_patch)

    def _count(self, prompt: str) -> int:
        # A tokenizer keeps settings from one call to the next.
        with self._working, reading():
            return self._family.tokens(self._pipeline, prompt)

    @torch.no_grad()
    def _embed(self, prompt: str, negative: bool) -> Named:
        with self._working:
            found: dict[str, Any] = dict(self._family.embed(self._pipeline, prompt, negative))
        return {
            name: value.float() if value.is_floating_point() else value
            for name, value in found.items()
        }
