"""A large file of labels comes in while requests are answered and others label."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.bundles.bundle import Bundle
from service.images.encode import to_b64_png
from tests.bundles import HEIGHT, WIDTH
from tests.service.api.conftest import JSONL, client
from tests.service.api.server import serve

LABELS = 500
CALLERS = 4


def _line(number: int) -> str:
    pixels = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    pixels[0, :2, 0] = divmod(number, 256)
    return json.dumps(
        {
            "image_id": f"shown_{number}", "label": "malign", "annotator": "label/Eve",
            "elapsed_ms": 0, "labelled": "2026-11-01T12:00:00+00:00", "strategy": "random",
            "inclusion": 1.0, "score": None, "seed": number, "draw": 0, "policy": "none",
            "policy_version": 0, "backbone": "sha256:backbone", "sha256": "sha256:of-old",
            "png": to_b64_png(pixels),
        }
    )  # fmt: skip


@pytest.mark.slow
def test_a_large_import_is_no_fault_to_those_who_draw_and_label(bundle: Bundle) -> None:
    limits = {"body_bytes": 4_000_000}
    body = "\n".join(_line(number) for number in range(LABELS))
    with serve(bundle, limits=limits) as served, ThreadPoolExecutor(CALLERS + 1) as pool:
        with client(served, "LABEL_KEY") as http:
            for name in ("brought", "labelled"):
                http.post("/v1/datasets", json={"name": name, "question": "Is it dark?"})

        def bring() -> int:
            with client(served, "LABEL_KEY") as http:
                http.timeout = 600
                answer = http.post("/v1/datasets/brought/import", content=body, headers=JSONL)
                assert answer.status_code == 200, answer.text
                return int(answer.json()["imported"])

        bringing = pool.submit(bring)

        def draw(_: int) -> set[int]:
            seen = set()
            with client(served) as http:
                while not bringing.done():
                    answer = http.post("/v1/images/generations", json={"prompt": "", "n": 1})
                    seen.add(answer.status_code)
            return seen

        def label() -> set[int]:
            seen = set()
            with client(served, "LABEL_KEY") as http:
                url = "/v1/datasets/labelled"
                while not bringing.done():
                    answer = http.post(f"{url}/batches", json={"size": 4})
                    seen.add(answer.status_code)
                    said = [
                        {"image_id": one["id"], "label": "benign", "elapsed_ms": 1}
                        for one in answer.json()["images"]
                    ]
                    seen.add(http.post(f"{url}/labels", json={"labels": said}).status_code)
            return seen

        callers = [pool.submit(label), *(pool.submit(draw, n) for n in range(CALLERS - 1))]
        # A block is an answer; what is refused for load has no fault.
        assert max(set().union(*(one.result() for one in callers))) < 500
        assert bringing.result() == LABELS
