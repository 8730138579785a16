"""Whether each image that was delivered may have been: against a calm run and the records."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from loadtest.callers import Answer
from loadtest.lines import Line, none
from service.generation.record import sha256
from service.store.store import Store

BLOCKED = "blocked"


def outcome(answer: Answer) -> str:
    """The sha256 of the first image's decoded bytes [H, W, C]; `blocked` without one."""
    if answer.image is None:
        return BLOCKED
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.image))))
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return sha256(pixels)


def audit(who: str, answers: Iterable[Answer], calm: Mapping[int, str], store: Store) -> list[Line]:
    """Hold what was delivered against the calm run's outcome of each seed, and the records."""
    delivered = [(one, outcome(one)) for one in answers if one.image is not None]
    was = [(f"seed {one.seed}", calm[one.seed], now) for one, now in delivered]
    found = [(one.seed, _unproven(store, one, now)) for one, now in delivered]
    return [
        Line(who, "images delivered", f"{len(was)}, of {len({name for name, *_ in was})} seeds"),
        none(who, "images unlike the calm run's",
             [name for name, then, now in was if then not in (BLOCKED, now)]),
        none(who, "images of a seed that was blocked",
             [name for name, then, _ in was if then == BLOCKED]),
        none(who, "images without a record that accepts them",
             [f"seed {seed}: {why}" for seed, why in found if why]),
    ]  # fmt: skip


def _unproven(store: Store, answer: Answer, pixels: str) -> str:
    """Why the store does not show that this image was judged and accepted; empty if it does."""
    assert answer.said is not None
    record = store.decisions.read(str(answer.said.get("id")))
    if record is None:
        return "no record"
    if "judge" not in record["plan"]["parts"]:
        return "a record without a judge"
    (image,) = record["images"]
    if (image["seed"], image["pixels_sha256"]) != (answer.seed, pixels):
        return "a record of another image"
    accepted = [one["draw"] for one in image["judged"] if one["verdict"] == "accepted"]
    if accepted != [answer.said["data"][0]["draws"] - 1]:
        return f"accepted draws {accepted}"
    return ""
