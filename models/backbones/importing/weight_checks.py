"""That a component's weights are those of its network: every one there, of the right shape."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from models.backbones.importing.source import CannotImport, short
from models.backbones.runtime import DTYPES

SHOWN = 3
"""So many names of weights in a message."""


def check_weights(folder: Path, library: str, class_name: str, dtype: str) -> None:
    """Load a component as it will be served. Raises CannotImport, naming the first weights.

    All of its numbers must be finite, of the parts too that no image of the check passes.
    """
    if library == "transformers":
        import transformers as package

        wanted = {"dtype": dtype}
    else:
        import diffusers as package  # type: ignore[no-redef]

        wanted = {"dtype": DTYPES.get(dtype, DTYPES["float32"])}  # type: ignore[call-overload]
    try:
        with quietly():
            network, info = getattr(package, class_name).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **wanted,
            )
    except Exception as error:  # whatever a library makes of a wrong file
        # Of a weight of another shape diffusers says also how to get round it.
        reason = " ".join(str(error).split()).partition(". If you want to")[0][:300]
        raise CannotImport(
            f"{folder.name}: {class_name} cannot load its weights: {reason}"
        ) from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info.get(what, ())):
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise CannotImport(
                f"{folder.name}: the weights are not those of a {class_name}: "
                f"{what.replace('_', ' ').replace('keys', 'weights')}: "
                f"{', '.join(names[:SHOWN])}{more}"
            )
    states: dict[str, torch.Tensor] = network.state_dict()
    for name, value in states.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            what = "NaN" if value.isnan().any() else "infinity"
            raise CannotImport(
                f"{folder.name}: {name} holds {what}: its weights are broken (a merge or a "
                "training that went wrong, perhaps): fetch them again, or another version"
            )


def check_tokenizer(folder: Path) -> None:
    """Load a tokenizer as it will be served. Raises CannotImport."""
    from transformers import CLIPTokenizer

    try:
        with quietly():
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizer("a word")
    except Exception as error:  # tokenizers has no class of its own for its faults
        raise CannotImport(
            f"{folder.name}: CLIPTokenizer cannot read its files (vocab.json and merges.txt, or "
            f"tokenizer.json): {short(error)}"
        ) from None


@contextlib.contextmanager
def quietly() -> Iterator[Any]:
    """Without the libraries' own words on weights, and their progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    before = [logger.level for logger in loggers]
    for package in (diffusers_logging, transformers_logging):
        package.disable_progress_bar()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
