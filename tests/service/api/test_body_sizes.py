"""A body's limit follows from its route and from the model's images."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np

from service.api.body_limits import body_limit
from service.config import Limits
from service.images.encode import to_b64_png


def _manifest(height: int, width: int) -> Any:
    return SimpleNamespace(backbone=SimpleNamespace(height=height, width=width))


def test_as_many_images_as_a_route_takes_fit_however_badly_they_compress() -> None:
    limits = Limits(moderation_inputs=2)
    limit = body_limit(limits, [_manifest(28, 28), _manifest(768, 1024)])
    noise = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    image = to_b64_png(noise)
    assert len(image) > limits.body_bytes, "else nothing is shown"
    for path, lines in (
        ("/v1/moderations", [{"image_url": {"url": f"data:image/png;base64,{image}"}}] * 2),
        ("/v1/datasets/some/import", [{"png": image}] * 2),
        ("/v1/datasets/some/import/", [{"png": image}] * 2),
    ):
        assert len(json.dumps(lines)) < limit(path) < 2.2 * len(image) + limits.body_bytes


def test_where_no_image_is_sent_the_limit_stays() -> None:
    limits = Limits(body_bytes=4096)
    limit = body_limit(limits, [_manifest(1024, 1024)])
    for path in (
        *("/v1/images/generations", "/v1/datasets", "/v1/datasets/import", "/session"),
        *("/v1/datasets/a/b/import", "/v1/moderations/x", "//v1/moderations"),
    ):
        assert limit(path) == 4096
