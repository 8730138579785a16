from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import CensorUnavailable, StoreUnavailable
from service.judge import judges as reward
from service.judge.judges import Judges

SHAPE = (2, 3, 1)


class Mean:
    """A judge whose reward is the mean grey level."""

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray(pixels.mean(axis=(1, 2, 3)) / 255, dtype=np.float64)


class Always:
    """A judge that always says the same."""

    def __init__(self, answer: float) -> None:
        self.answer = answer

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.full(len(pixels), self.answer)


class Dimmed(Mean):
    """A judge whose reward is so many times the mean grey level."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return self.factor * super().score(pixels)


def _grey(level: int) -> NDArray[np.uint8]:
    return np.full(SHAPE, level, dtype=np.uint8)


def test_scores_come_in_the_order_of_the_images() -> None:
    judges = Judges({"mean": Mean(), "half": Always(0.5)}, SHAPE)
    assert judges.score("mean", [_grey(255), _grey(0), _grey(51)]) == [1.0, 0.0, 0.2]
    assert judges.score("half", [_grey(255)]) == [0.5]
    judges.canary()


def test_a_judge_that_is_not_loaded_is_no_judge() -> None:
    with pytest.raises(CensorUnavailable, match="sha256:other is not loaded"):
        Judges({"mean": Mean()}, SHAPE).score("sha256:other", [_grey(1)])


def test_an_image_of_another_shape_is_refused() -> None:
    with pytest.raises(CensorUnavailable, match="shape"):
        Judges({"mean": Mean()}, SHAPE).score("mean", [_grey(1), np.zeros((3, 2, 1), np.uint8)])


@pytest.mark.parametrize("answer", [math.nan, -0.5, 1.5, math.inf])
def test_a_judge_with_an_unusable_canary_is_not_ready(answer: float) -> None:
    with pytest.raises(CensorUnavailable, match="canary"):
        Judges({"mean": Mean(), "bad": Always(answer)}, SHAPE).canary()


def test_nan_reaches_the_verdict_as_nan() -> None:
    assert math.isnan(Judges({"bad": Always(math.nan)}, SHAPE).score("bad", [_grey(0)])[0])


class Single:
    """A judge whose graph was made for one image: it scores the first of a batch."""

    def score(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.full(1, 0.5)


def test_a_judge_of_single_images_is_not_ready() -> None:
    with pytest.raises(CensorUnavailable, match="canary"):
        Judges({"single": Single()}, SHAPE).canary()


class Files:
    """Blobs and what opens them: a file holds the factor of its judge."""

    def __init__(self, folder: Path, **answers: str) -> None:
        self.folder = folder
        self.opened: list[str] = []
        for name, answer in answers.items():
            (folder / name).write_text(answer)

    def find(self, name: str, suffix: str) -> Path:
        if not (self.folder / name).exists():
            raise StoreUnavailable(f"blob {name} is not in the store")
        return self.folder / name

    def open(self, path: Path) -> Dimmed:
        self.opened.append(path.name)
        return Dimmed(float(path.read_text()))


def test_a_judge_is_loaded_by_its_name_once(tmp_path: Path) -> None:
    files = Files(tmp_path, other="0.25")
    judges = Judges({"mean": Mean()}, SHAPE, files.find, files.open)
    assert not judges.has("other")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(judges.load, ["other"] * 8))
    assert files.opened == ["other"]
    assert judges.score("other", [_grey(255)]) == [0.25]
    assert judges.score("mean", [_grey(255)]) == [1.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nan", "not finite"),
        ("1.5", r"where one score in \[0, 1\] an image is due"),
        ("0", "scores every image of its trial 0: it tells nothing apart"),
        ("1e-30", "it tells nothing apart"),
        ("no judge", "cannot be loaded"),
    ],
)
def test_a_judge_that_does_not_stand_its_trial_never_judges(
    tmp_path: Path, content: str, words: str
) -> None:
    files = Files(tmp_path, bad=content)
    judges = Judges({"mean": Mean()}, SHAPE, files.find, files.open)
    for name, expected in (("bad", words), ("missing", "not in the store")):
        with pytest.raises(CensorUnavailable, match=expected):
            judges.load(name)
        assert not judges.has(name)
    judges.canary()


def test_promotions_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody asks for any more goes; the bundle's, and what is in use, stay."""
    now = [0.0]
    monkeypatch.setattr(reward.time, "monotonic", lambda: now[0])
    names = [f"trained-{number}" for number in range(30)]
    files = Files(tmp_path, **dict.fromkeys(names, "0.5"))
    judges = Judges({"mean": Mean()}, SHAPE, files.find, files.open)
    for name in names:
        judges.load(name)
        now[0] += reward.IDLE_S / 2
        judges.score(names[0], [_grey(255)])
    loaded = [name for name in names if judges.has(name)]
    assert loaded == [names[0], *names[-reward.KEPT + 1 :]]
    assert judges.has("mean")
    judges.load(names[1])
    assert judges.score(names[1], [_grey(255)]) == judges.score(names[0], [_grey(255)])


def test_callers_of_several_sizes_share_a_pass_and_each_gets_its_own_score() -> None:
    def image(height: int, value: int) -> NDArray[np.uint8]:
        return np.full((height, 3, 1), value, dtype=np.uint8)

    judges = Judges({"mean": Mean()}, SHAPE, others=[(4, 3, 1)])
    shown = [image(2, 51), image(4, 102), image(2, 153), image(4, 204)]
    assert judges.score("mean", shown) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    with pytest.raises(CensorUnavailable, match="scores images of shape"):
        judges.score("mean", [image(6, 0)])
    with pytest.raises(CensorUnavailable, match="scores images of shape"):
        Judges({"mean": Mean()}, SHAPE).score("mean", [image(4, 0)])
