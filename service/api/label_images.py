"""Images to label, as JSON for a page."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence

from service.api.context import Context
from service.errors import BlobMissing, BlobUnreadable
from service.policies.inputs import NO_INPUTS, caption
from service.store.datasets import ImageToLabel

log = logging.getLogger("winnow.labelling")


def pictures(
    context: Context, model: str, shown: Sequence[ImageToLabel]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Each image, and under it what the model was asked for, where it is asked for anything; and
    beside them those that cannot be shown, and why: they keep nobody from the others.

    Not the score, not the strategy: what the service expects is no help to an honest answer.
    Raises StoreUnavailable where no blob can be read.
    """
    manifest = context.manifests.get(model)
    inputs = manifest.backbone.inputs if manifest else NO_INPUTS
    found, unreadable = [], []
    for one in shown:
        try:
            png = context.store.blobs.get(one.blob)
        except BlobUnreadable as error:
            log.warning("image %s cannot be shown: %s", one.id, error)
            unreadable.append({"id": one.id, "why": why(error)})
            continue
        picture = {"id": one.id, "b64_json": base64.b64encode(png).decode("ascii")}
        if (said := caption(one.input, inputs)) is not None:
            picture["caption"] = said
        found.append(picture)
    return found, unreadable


def why(error: BlobUnreadable) -> str:
    """Why an image cannot be shown, as a word."""
    return "purged" if isinstance(error, BlobMissing) else "damaged"
