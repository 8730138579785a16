"""Images that somebody is to label, as JSON for a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from service.api.context import Context
from service.inputs import NO_INPUTS, caption
from service.store.datasets import Shown


def pictures(context: Context, model: str, shown: Sequence[Shown]) -> list[dict[str, str]]:
    """Each image, and under it what the model was asked for, where it is asked for anything.

    Not the score, not the strategy: what the service expects is no help to an honest answer.
    """
    manifest = context.manifests.get(model)
    inputs = manifest.backbone.inputs if manifest else NO_INPUTS
    found = []
    for one in shown:
        png = base64.b64encode(context.store.blobs.get(one.blob)).decode("ascii")
        picture = {"id": one.id, "b64_json": png}
        if (said := caption(one.input, inputs)) is not None:
            picture["caption"] = said
        found.append(picture)
    return found
