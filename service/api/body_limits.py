"""How large a body may be: as much as its route can use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from models.bundles.manifest import Manifest
from service import images
from service.config import Limits
from service.images.encode import b64_length

WITH_IMAGES = re.compile(r"/v1/(moderations|datasets/[^/]+/import)/?")
"""The routes whose bodies carry images, as base64."""


def body_limit(limits: Limits, manifests: Iterable[Manifest]) -> Callable[[str], int]:
    """The most bytes of a body, by its path: `limits.body_bytes`; with images, so many more that
    `limits.moderation_inputs` of the largest model's fit, however badly they compress.
    """
    backbones = [manifest.backbone for manifest in manifests]
    one = max(b64_length(images.most_bytes(each.height, each.width)) for each in backbones)
    with_images = limits.body_bytes + limits.moderation_inputs * one

    def limit(path: str) -> int:
        return with_images if WITH_IMAGES.fullmatch(path) else limits.body_bytes

    return limit
