"""A person's answers: stored with their images, and never taken for those of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.zoo.evaluation.viewed import (
    CROSSED,
    PLAIN,
    UNSURE,
    Viewed,
    grids,
    load_viewed,
    read_answers,
    save_viewed,
    sha256,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (120, 28, 28, 1)).astype(np.uint8)


def answers_file(folder: Path, **changes: object) -> Path:
    path = folder / "answers.json"
    found = {"images_sha256": sha256(PIXELS), "crossed": [1, 5], "unsure": [7]}
    path.write_text(json.dumps(found | changes))
    return path


def test_answers_go_to_the_indices_listed(tmp_path: Path) -> None:
    answers = read_answers(answers_file(tmp_path), PIXELS)
    assert np.flatnonzero(answers == CROSSED).tolist() == [1, 5]
    assert np.flatnonzero(answers == UNSURE).tolist() == [7]
    assert (answers == PLAIN).sum() == 117


def test_answers_about_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other images"):
        read_answers(answers_file(tmp_path), PIXELS[::-1])


@pytest.mark.parametrize("index", [120, -1, "3"])
def test_index_that_there_is_not(tmp_path: Path, index: object) -> None:
    with pytest.raises(ValueError, match="is not an index from 0 to 119"):
        read_answers(answers_file(tmp_path, crossed=[index]), PIXELS)


def test_file_of_another_shape_is_explained(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text("{}")
    with pytest.raises(ValueError, match="images_sha256"):
        read_answers(tmp_path / "answers.json", PIXELS)


def test_error_counts_where_the_person_was_sure(tmp_path: Path) -> None:
    answers = np.array([PLAIN, CROSSED, UNSURE, CROSSED, PLAIN], dtype=np.uint8)
    viewed = Viewed(PIXELS[:5], answers, {"first_seed": "1"})
    save_viewed(viewed, tmp_path / "viewed.safetensors")
    loaded = load_viewed(tmp_path / "viewed.safetensors")
    assert loaded.source == {"first_seed": "1"}
    np.testing.assert_array_equal(loaded.pixels, PIXELS[:5])
    found = loaded.error(np.array([True, True, True, False, False]))
    assert (found["errors"], found["unsure"], found["wrong"]) == (2, 1, [0, 3])
    assert found["error_rate"] == pytest.approx(0.5)


def test_sheets_show_every_image_once() -> None:
    sheets = grids(PIXELS)
    assert len(sheets) == 2
    tile = np.asarray(sheets[1])[12 : 12 + 84, 2 : 2 + 84]  # the first of the second sheet
    np.testing.assert_allclose(tile[1::3, 1::3], PIXELS[100, ..., 0], atol=80)
    assert np.corrcoef(tile[1::3, 1::3].ravel(), PIXELS[100, ..., 0].ravel())[0, 1] > 0.9
