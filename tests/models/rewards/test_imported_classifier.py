"""A classifier of somebody else's as a judge, against running its file by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.special import expit, softmax
from torch import Tensor, nn

from models.onnx.graph import GraphError
from models.onnx.preprocessing import PreparationOptions
from models.rewards.class_numbers import OutputMeaning
from models.rewards.imported_classifier import Imported, make_judge
from models.rewards.judge_check import KnownImages
from models.rewards.onnx_judge import OnnxJudge
from tests import classifiers
from tests.classifiers import HEIGHT, WIDTH, change, classifier, pixels

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NORMALISED = PreparationOptions(mean=MEAN, std=STD)
TWO = OutputMeaning(malign=(1, 2))
RGB, GREY = (31, 17, 3), (28, 28, 1)


def by_hand(images: np.ndarray, wanted: PreparationOptions = NORMALISED) -> np.ndarray:
    """[B, 3, HEIGHT, WIDTH]: Pillow's own bilinear resizing, without its rounding to 8 bits."""
    images = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
    resized = [
        [
            np.asarray(Image.fromarray(plane.astype(np.float32)).resize((WIDTH, HEIGHT), 2))
            for plane in np.moveaxis(image, 2, 0)
        ]
        for image in images
    ]
    mean, std = (np.array(one)[:, None, None] for one in (wanted.mean, wanted.std))
    return ((np.array(resized) / 255 * wanted.scale - mean) / std).astype(np.float32)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["scores"], {"images": images})[0]
    return found.reshape(len(images), -1).astype(np.float64)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[OnnxJudge, Imported]]:
    def made(
        path: Path,
        image: tuple[int, int, int] = RGB,
        wanted: PreparationOptions = NORMALISED,
        meaning: OutputMeaning = TWO,
    ) -> tuple[OnnxJudge, Imported]:
        found = make_judge(path, image, wanted, meaning, tmp_path / "judge.onnx")
        return OnnxJudge(tmp_path / "judge.onnx"), found

    return made


@pytest.mark.parametrize("opset", [9, 12, 13, 17, 18, 20])
@pytest.mark.parametrize("image", [RGB, GREY])
def test_scores_are_the_files_own_at_every_opset(
    make: Any, tmp_path: Path, opset: int, image: tuple[int, int, int]
) -> None:
    path = classifier(tmp_path / "a.onnx", opset=opset)
    judge, found = make(path, image)
    images = pixels(7, *image)
    chances = softmax(run(path, by_hand(images)), axis=1)
    np.testing.assert_allclose(judge.score(images), chances[:, [0, 3]].sum(axis=1), atol=1e-4)
    assert np.ptp(judge.score(images)) > 1e-3
    assert (found.opset, found.fixed_batch) == (opset, None)
    alone = np.concatenate([judge.score(images[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(judge.score(images), alone, atol=1e-6)


MEANINGS: list[tuple[Any, int, OutputMeaning, Callable[[np.ndarray], np.ndarray]]] = [
    (classifiers.softmax, 4, OutputMeaning("probabilities", (1, 2)), lambda p: p[:, [0, 3]].sum(1)),
    (classifiers.softmax, 4, OutputMeaning("probabilities", (), (0,)), lambda p: p[:, 0]),
    (torch.sigmoid, 4, OutputMeaning("sigmoid", (1, 3)), lambda p: 1 - p[:, [1, 3]].max(1)),
    (torch.sigmoid, 1, OutputMeaning("probabilities", (0,)), lambda p: 1 - p[:, 0]),
    (torch.sigmoid, 1, OutputMeaning("sigmoid", (), (0,)), lambda p: p[:, 0]),
    (lambda x: x, 1, OutputMeaning("logits", (0,)), lambda z: expit(-z[:, 0])),
    (lambda x: x, 1, OutputMeaning("logits", (), (0,)), lambda z: expit(z[:, 0])),
    (lambda x: x, 4, OutputMeaning("sigmoid-logits", (1, 3)),
     lambda z: expit(-z[:, [1, 3]].max(1))),
    (lambda x: x[:, :, None, None], 4, OutputMeaning("logits", (0,)),
     lambda z: 1 - softmax(z, axis=1)[:, 0]),
]  # fmt: skip


@pytest.mark.parametrize(("last", "classes", "meaning", "benign"), MEANINGS)
@pytest.mark.parametrize("opset", [11, 18])
def test_what_numbers_mean(
    make: Any,
    tmp_path: Path,
    last: Any,
    classes: int,
    meaning: OutputMeaning,
    benign: Any,
    opset: int,
) -> None:
    path = classifier(tmp_path / "a.onnx", opset=opset, last=last, classes=classes)
    judge, _ = make(path, meaning=meaning)
    images = pixels(6, *RGB)
    expected = benign(run(path, by_hand(images)))
    np.testing.assert_allclose(judge.score(images), expected, atol=1e-4)


def test_channels_last_and_uint8_and_half(make: Any, tmp_path: Path) -> None:
    images = pixels(6, *RGB)
    last = classifier(tmp_path / "nhwc.onnx", nhwc=True)
    expected = softmax(run(last, by_hand(images).transpose(0, 2, 3, 1)), axis=1)[:, [0, 3]].sum(1)
    judge, found = make(last)
    np.testing.assert_allclose(judge.score(images), expected, atol=1e-4)
    assert found.preparation.layout == "NHWC"

    class Bytes(classifiers.Classifier):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float() / 255)

    raw = classifiers.write(
        tmp_path / "u8.onnx", Bytes(), torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    )
    rounded = np.floor(by_hand(images, PreparationOptions(mean=(0,), std=(1,), scale=255)) + 0.5)
    expected = softmax(run(raw, rounded.astype(np.uint8)), axis=1)[:, [0, 3]].sum(axis=1)
    np.testing.assert_allclose(
        make(raw, wanted=PreparationOptions())[0].score(images), expected, atol=1e-2
    )
    with pytest.raises(GraphError, match="takes uint8 pixels as they are"):
        make(raw)

    class Half(classifiers.Classifier):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.float()).half()

    half = classifiers.write(
        tmp_path / "half.onnx", Half(), torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.float16)
    )
    expected = softmax(run(half, by_hand(images).astype(np.float16)), axis=1)[:, [0, 3]].sum(1)
    np.testing.assert_allclose(make(half)[0].score(images), expected, atol=1e-2)


def test_colours(make: Any, tmp_path: Path) -> None:
    images = pixels(6, *RGB)
    one = classifier(tmp_path / "one.onnx", channels=1)
    grey = (images @ np.array([0.299, 0.587, 0.114]))[..., None]
    expected = softmax(run(one, by_hand(grey, PreparationOptions())[:, :1]), axis=1)[:, [0, 3]].sum(
        axis=1
    )
    np.testing.assert_allclose(
        make(one, wanted=PreparationOptions())[0].score(images), expected, atol=1e-4
    )

    path = classifier(tmp_path / "a.onnx")
    caffe = PreparationOptions(scale=255, mean=(104, 117, 123), std=(60,))
    judge, _ = make(path, wanted=replace(caffe, bgr=True))
    blue = by_hand(images[..., ::-1], caffe)
    expected = softmax(run(path, blue), axis=1)[:, [0, 3]].sum(axis=1)
    np.testing.assert_allclose(judge.score(images), expected, atol=1e-4)
    with pytest.raises(GraphError, match="--bgr: bundle and network must both have three"):
        make(path, GREY, PreparationOptions(bgr=True))


def test_any_size_needs_one_and_a_fixed_one_takes_no_other(make: Any, tmp_path: Path) -> None:
    def free(model: onnx.ModelProto) -> None:
        for place in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"d{place}"

    fixed = classifier(tmp_path / "fixed.onnx")
    with pytest.raises(GraphError, match="takes 20x24 alone, not --size 32x32"):
        make(fixed, wanted=PreparationOptions(size=(32, 32)))
    path = change(classifier(tmp_path / "a.onnx"), free)
    with pytest.raises(GraphError, match="any size: say with --size HxW"):
        make(path)
    judge, _ = make(path, wanted=PreparationOptions((HEIGHT, WIDTH), None, 1.0, MEAN, STD))
    other, _ = make(fixed)
    images = pixels(4, *RGB)
    np.testing.assert_allclose(judge.score(images), other.score(images), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_fixed_batch_is_made_dynamic_where_that_works(
    make: Any, tmp_path: Path, rows: int
) -> None:
    network = classifiers.Classifier()
    path = classifiers.write(
        tmp_path / "a.onnx", network, torch.rand(rows, 3, HEIGHT, WIDTH), fixed=True
    )
    judge, found = make(path)
    assert found.fixed_batch == rows
    images = pixels(5, *RGB)
    expected = softmax(network(torch.from_numpy(by_hand(images))).detach().numpy(), axis=1)
    np.testing.assert_allclose(judge.score(images), expected[:, [0, 3]].sum(axis=1), atol=1e-4)


class OneByOne(classifiers.Classifier):
    """A batch of one is written into its reshape."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.reshape(1, 3, HEIGHT, WIDTH))


class Batched(classifiers.Classifier):
    """What else is in the batch counts."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(dim=0, keepdim=True))


class Broken(classifiers.Classifier):
    """Not a number, as soon as an image is white."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / (images.mean(dim=(1, 2, 3)) < 1)[:, None]


@pytest.mark.parametrize(
    ("network", "fixed", "wrong"),
    [
        (OneByOne(), True, "takes 1 image at a time and cannot be made to take any number: export"),
        (Batched(), False, "with what else is in its batch: export the network in evaluation mode"),
        (Broken(), False, "numbers that are not finite"),
        (nn.Flatten(0), False, "must be .batch, ....|does not run on several"),
    ],
)
def test_what_treats_images_unlike_is_refused(
    make: Any, tmp_path: Path, network: nn.Module, fixed: bool, wrong: str
) -> None:
    path = classifiers.write(tmp_path / "a.onnx", network, torch.rand(1, 3, HEIGHT, WIDTH), fixed)
    with pytest.raises(GraphError, match=wrong):
        make(path, wanted=PreparationOptions())


@pytest.mark.parametrize(
    ("last", "classes", "meaning", "wrong"),
    [
        (
            lambda x: x,
            4,
            OutputMeaning("probabilities", (1,)),
            "are not in 0..1: they may be .* logits",
        ),
        (lambda x: x, 4, OutputMeaning("sigmoid", (1,)), "they may be --activation sigmoid-logits"),
        (
            torch.sigmoid,
            4,
            OutputMeaning("probabilities", (1,)),
            "not 1: .* are --activation sigmoid",
        ),
        (classifiers.softmax, 4, OutputMeaning("logits", (1,)), "say --activation probabilities"),
        # As `sigmoid` the greatest of several malign classes would count, and not their sum.
        (classifiers.softmax, 4, OutputMeaning("sigmoid", (1, 2, 3)), "activation probabilities"),
        (lambda x: 100 * x.softmax(1), 4, OutputMeaning("logits", (1,)), "sum to 100: a softmax"),
        (
            lambda x: x.log_softmax(1),
            4,
            OutputMeaning("sigmoid-logits", (1, 2)),
            "a log-softmax is in the graph, so say --activation logits",
        ),
        (torch.sigmoid, 1, OutputMeaning("logits", (0,)), "a sigmoid may be in the graph"),
        (torch.sigmoid, 1, OutputMeaning("sigmoid-logits", (0,)), "a sigmoid may be in the graph"),
        (torch.sigmoid, 4, OutputMeaning("logits", (1,)), "a sigmoid may be in the graph"),
        (lambda x: x, 4, OutputMeaning("logits", ("nsfw",)), "has no labels: say the number"),
        (lambda x: x, 4, OutputMeaning("logits", (4,)), "--malign 4: it gives 4 .* 0 to 3"),
        (lambda x: x, 4, OutputMeaning("logits", (-1,)), "--malign -1: it gives 4 numbers"),
        (
            lambda x: x,
            1,
            OutputMeaning("logits", (), (1,)),
            "--benign 1: it gives 1 number an image",
        ),
        (lambda x: x, 4, OutputMeaning("logits"), "say which classes are malign with --malign"),
        (lambda x: x, 4, OutputMeaning("logits", (0,), (1,)), "say which classes are malign"),
        (lambda x: x, 2, OutputMeaning("logits", (0, 1)), "leave one that is benign"),
        (lambda x: x, 2, OutputMeaning("logits", (), (0, 1)), "leave one that is malign"),
    ],
)
def test_numbers_that_are_not_what_is_said_of_them_are_refused(
    make: Any, tmp_path: Path, last: Any, classes: int, meaning: OutputMeaning, wrong: str
) -> None:
    path = classifier(tmp_path / "a.onnx", last=last, classes=classes)
    with pytest.raises(GraphError, match=wrong):
        make(path, meaning=meaning)


def test_numbers_in_0_to_1_are_logits_where_a_canary_and_a_control_show_it(
    tmp_path: Path,
) -> None:
    path = classifier(tmp_path / "a.onnx", last=lambda x: torch.sigmoid(x) / 2, classes=1)
    low, high = np.zeros((2, *RGB), np.uint8)
    high[:] = 255

    def score(known: KnownImages) -> Imported:
        meaning, out = OutputMeaning("logits", (), (0,)), tmp_path / "o.onnx"
        return make_judge(path, RGB, NORMALISED, meaning, out, known)

    for known in (KnownImages(), KnownImages(canary=low), KnownImages(control=high)):
        with pytest.raises(GraphError, match="show it both --canary and --control"):
            score(known)
    assert score(KnownImages(low, high)).seen.canary is not None


@pytest.mark.parametrize("meaning", [TWO, OutputMeaning("sigmoid-logits", (1, 2))])
@pytest.mark.parametrize("place", range(4))
def test_a_score_that_is_broken_stays_broken(
    make: Any, tmp_path: Path, meaning: OutputMeaning, place: int
) -> None:
    """A maximum would pass over NaN, and a malign image leave by it."""

    class Rarely(classifiers.Classifier):
        def forward(self, images: Tensor) -> Tensor:
            columns = list(super().forward(images).split(1, dim=1))
            rare = images[:, :1, 0, 0] == 77
            columns[place] = torch.where(rare, torch.nan, columns[place])
            return torch.cat(columns, dim=1)

    path = classifiers.write(tmp_path / "a.onnx", Rarely(), torch.rand(1, 3, HEIGHT, WIDTH))
    judge, _ = make(path, (HEIGHT, WIDTH, 3), PreparationOptions(scale=255), meaning)
    images = pixels(3, HEIGHT, WIDTH, 3)
    images[:, 0, 0, 0] = [76, 77, 78]
    assert np.isnan(judge.score(images)).tolist() == [False, True, False]


def _domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.acme"
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))


def _double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def _two_inputs(model: onnx.ModelProto) -> None:
    info = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(info)


def _two_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(
            model.graph.node[-1].input[0], onnx.TensorProto.FLOAT, None
        )
    )


def _shape(*dims: int | str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        info = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, dims)
        model.graph.input[0].CopyFrom(info)

    return edit


@pytest.mark.parametrize(
    ("edit", "wrong"),
    [
        (_domain, r"does not bring: com\.acme\.Conv\. They would need somebody else's code"),
        (_double, "'images' is double, must be float32 or float16 or uint8"),
        (_two_inputs, "images and nothing else; its inputs are: images, mask"),
        (_two_outputs, r"has 2 outputs \(scores, .*\): say which with --output"),
        (_shape("n", 3, 480), "has 3 axes, must have 4"),
        (_shape("n", 5, 20, 24), "an axis for 1 or 3 channels is missing"),
        (_shape("n", 3, 24, 3), "say --layout NCHW or --layout NHWC"),
        (_shape("n", "c", "h", "w"), "say --layout NCHW or --layout NHWC"),
        (_shape("n", 3, 9, "w"), "any size: say with --size"),
    ],
)
def test_graphs_that_do_not_fit_are_refused(
    make: Any, tmp_path: Path, edit: Any, wrong: str
) -> None:
    path = change(classifier(tmp_path / "a.onnx"), edit)
    with pytest.raises(GraphError, match=wrong):
        make(path)


def test_which_output_and_layout_are_checked(make: Any, tmp_path: Path) -> None:
    path = change(classifier(tmp_path / "a.onnx"), _two_outputs)
    judge, _ = make(path, meaning=OutputMeaning("logits", (1, 2), (), "scores"))
    plain, _ = make(classifier(tmp_path / "b.onnx"))
    images = pixels(3, *RGB)
    np.testing.assert_allclose(judge.score(images), plain.score(images), atol=1e-6)
    with pytest.raises(GraphError, match="has no output 'x': it has scores, "):
        make(path, meaning=OutputMeaning("logits", (1,), (), "x"))
    with pytest.raises(GraphError, match=r"which is not --layout NHWC"):
        make(
            plain_path := classifier(tmp_path / "c.onnx"), wanted=PreparationOptions(layout="NHWC")
        )
    assert plain_path.is_file()


@pytest.mark.parametrize(
    ("wanted", "wrong"),
    [
        (PreparationOptions(mean=(0.1, 0.2)), "--mean: 2 numbers, must be 1 or 3"),
        (PreparationOptions(std=(0.0,)), "--scale and --std must be above 0"),
        (PreparationOptions(scale=-1), "--scale and --std must be above 0"),
        (PreparationOptions(mean=(float("nan"),)), "must be finite"),
        (PreparationOptions(size=(0, 5)), "takes 20x24 alone"),
    ],
)
def test_options_out_of_range_are_refused(
    make: Any, tmp_path: Path, wanted: PreparationOptions, wrong: str
) -> None:
    with pytest.raises(GraphError, match=wrong):
        make(classifier(tmp_path / "a.onnx"), wanted=wanted)


def test_weights_beside_the_file_come_along_or_are_asked_for(make: Any, tmp_path: Path) -> None:
    whole = classifier(tmp_path / "whole.onnx")
    split = tmp_path / "split" / "a.onnx"
    split.parent.mkdir()
    onnx.save(
        onnx.load(whole), split, save_as_external_data=True, location="a.data", size_threshold=0
    )
    assert split.stat().st_size < whole.stat().st_size
    judge, found = make(split)
    assert set(found.source["files"]) == {"a.onnx", "a.data"}
    plain, _ = make(whole)
    images = pixels(3, *RGB)
    np.testing.assert_allclose(judge.score(images), plain.score(images), atol=1e-6)
    (split.parent / "a.data").unlink()
    with pytest.raises(GraphError, match=r"weights are in a\.data, which does not lie beside it"):
        make(split)


def test_too_big_and_pickled_and_broken_files_are_refused(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier(tmp_path / "a.onnx")
    monkeypatch.setattr("models.onnx.graph.MAX_BYTES", 100)
    with pytest.raises(GraphError, match="one file of a bundle holds at most"):
        make(path)
    monkeypatch.undo()
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(GraphError, match=re.escape("a pickle can run code")):
        make(tmp_path / "a.pt")
    for begin, wrong in (
        (b"not a graph", "is not an ONNX file"),
        (b"", "is empty: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab", "git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\x03\x04archive/data.pkl", "is a zip archive, as torch.save writes"),
        (b"\x89HDF\r\n\x1a\n", "HDF5, as Keras writes"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
        (b"GGUF\x03", "GGUF"),
        (b'\x40\0\0\0\0\0\0\0{"a":', "safetensors, weights alone: give the folder"),
        (b'{"a": 1}', "is JSON, no network"),
    ):
        (tmp_path / "b.onnx").write_bytes(begin)
        with pytest.raises(GraphError, match=wrong):
            make(tmp_path / "b.onnx")
    onnx.save(
        onnx.helper.make_model(
            onnx.load(path).graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", 3)]
        ),
        tmp_path / "ml.onnx",
    )
    with pytest.raises(GraphError, match="holds no graph of images"):
        make(tmp_path / "ml.onnx")
    with pytest.raises(GraphError, match="cannot be read"):
        make(tmp_path / "c.onnx")


def test_local_functions_are_opened(make: Any, tmp_path: Path) -> None:
    """As torch's newer exporter may leave them."""
    path = classifier(tmp_path / "a.onnx")
    plain, _ = make(path)

    def call(model: onnx.ModelProto) -> None:
        last = model.graph.node[-1]
        function = onnx.helper.make_function(
            "own", "Head", list(last.input), list(last.output), [last], list(model.opset_import)
        )
        node = onnx.helper.make_node("Head", list(last.input), list(last.output), domain="own")
        last.CopyFrom(node)
        model.functions.append(function)
        model.opset_import.append(onnx.helper.make_opsetid("own", 1))

    judge, _ = make(change(path, call))
    images = pixels(3, *RGB)
    np.testing.assert_allclose(judge.score(images), plain.score(images), atol=1e-6)
