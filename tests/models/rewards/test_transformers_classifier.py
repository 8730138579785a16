"""Folders of transformers' as judges, against transformers' own networks and image processors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.bundles.bundle import sha256_name
from models.onnx.export import export_graph
from models.onnx.graph import GraphError
from models.onnx.preprocessing import PreparationOptions
from models.rewards import transformers_classifier as classifier
from models.rewards.class_numbers import OutputMeaning
from models.rewards.image_processor import ImageProcessor
from models.rewards.imported_classifier import Imported, make_judge
from models.rewards.judge_check import KnownImages
from models.rewards.onnx_judge import OnnxJudge
from tests import transformers_folders as folders
from tests.classifiers import pixels

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NORMAL = OutputMeaning(benign=("normal",))
PLAIN = PreparationOptions()


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.vit(tmp_path_factory.mktemp("zoo") / "vit")


@pytest.fixture
def copy(vit: Path, tmp_path: Path) -> Path:
    shutil.copytree(vit, tmp_path / "copy")
    return tmp_path / "copy"


def import_(folder: Path, image: tuple[int, int, int], out: Path, **more: Any) -> Imported:
    meaning, known = more.get("meaning", NORMAL), more.get("known", KnownImages())
    return make_judge(folder, image, more.get("wanted", PLAIN), meaning, out, known)


def shown(image: tuple[int, int, int]) -> np.ndarray:
    """Noise, which shows each pixel that is amiss, and blocks, which show the colours."""
    height, width, channels = image
    noise = pixels(6, *image)
    noise[3:] = noise[3:, :1, :1] // 2 + noise[3:, ::-1] // 4
    noise[5, : height // 2, : width // 2] = [250, 40, 10][:channels]
    return noise


CASES: list[tuple[Callable[[Path], Path], tuple[int, int, int], float]] = [
    (folders.vit, (32, 32, 3), 1e-4),  # the size that it takes: nothing is rounded
    (folders.resnet, (53, 47, 3), 1e-2),
    (folders.convnext, (28, 28, 1), 1e-2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "image", "tolerance"), CASES, ids=["vit", "resnet", "convnext"])
def test_a_judge_scores_as_transformers_own_pipeline(
    tmp_path: Path,
    make: Callable[[Path], Path],
    image: tuple[int, int, int],
    tolerance: float,
) -> None:
    folder = make(tmp_path / "folder")
    found = import_(folder, image, tmp_path / "judge.onnx")
    images = shown(image)
    scores = OnnxJudge(tmp_path / "judge.onnx").score(images)
    np.testing.assert_allclose(scores, folders.own_scores(folder, images), atol=tolerance)
    assert np.ptp(scores) > 0.1
    assert found.error <= tolerance
    assert (found.malign, found.benign) == (("drawing", "nsfw"), ("normal",))
    assert found.source["malign"] == [1, 2]
    assert found.source["labels"] == list(folders.LABELS)
    assert found.source["files"] == {
        name: sha256_name(folder / name)
        for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    }


@pytest.mark.parametrize(
    ("changes", "image", "resized"),
    [
        ({}, (32, 32, 3), (32, 32)),
        ({}, (31, 57, 3), (32, 32)),
        ({"resample": 0}, (57, 31, 3), (32, 32)),
        ({"resample": 1}, (57, 31, 3), (32, 32)),
        ({"resample": 3}, (57, 31, 3), (32, 32)),
        ({"resample": 3}, (13, 17, 1), (32, 32)),
        ({"resample": 4}, (57, 31, 3), (32, 32)),
        ({"resample": 5}, (20, 31, 3), (32, 32)),
        ({"image_processor_type": "ViTFeatureExtractor"}, (31, 57, 3), (32, 32)),
        ({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36},
          "crop_size": {"height": 32, "width": 32}, "do_normalize": False}, (40, 45, 3), (36, 40)),
        ({"do_rescale": False}, (32, 32, 3), (32, 32)),
        ({"rescale_factor": 1 / 127.5}, (32, 32, 3), (32, 32)),
        ({"do_normalize": False}, (40, 32, 3), (32, 32)),
        ({"image_mean": [0.1, 0.5, 0.9], "image_std": [0.2, 0.5, 1.0]}, (40, 32, 3), (32, 32)),
        ({"do_resize": False}, (32, 32, 3), (32, 32)),
        ({"do_resize": False, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
         (45, 40, 3), (45, 40)),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True,
          "crop_size": {"height": 32, "width": 32}}, (40, 61, 3), (32, 48)),
        ({"do_resize": False, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
         (27, 40, 3), (27, 40)),
    ],
)  # fmt: skip
def test_what_an_image_processor_does_is_read_from_it(
    copy: Path,
    changes: dict[str, Any],
    image: tuple[int, int, int],
    resized: tuple[int, int],
) -> None:
    """Without an export: what its nodes do is compared with the processor by ONNX's reference."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    from models.onnx.graph import Graph
    from models.rewards.image_processor import LEVELS, open_processor

    folders.change(copy, "preprocessor_config.json", lambda said: said.update(changes))
    processor = open_processor(copy)
    images = shown(image)
    graph = Graph(copy, copy, helper.make_model(helper.make_graph([], "g", [], [])), "x", "y",
                  "float32", (None, 3, 32, 32), 18, ())  # fmt: skip
    made = processor.preparation(graph, images)
    assert (made.resized, made.size) == (resized, (32, 32))
    for opset in (9, 18):
        nodes, result = made.nodes(opset)
        model = helper.make_model(
            helper.make_graph(
                nodes.nodes,
                "g",
                [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", *image])],
                [helper.make_tensor_value_info(result, TensorProto.FLOAT, None)],
                nodes.constants,
            ),
            opset_imports=[helper.make_opsetid("", opset)],
        )
        found = ReferenceEvaluator(model).run(None, {"pixels": images})[0]
        white = np.array(made.std)[:, None, None] * 255 / made.scale
        off = np.abs(found - processor.shown(images)) * white
        assert off.max() <= (1e-3 if image[:2] == resized else LEVELS)


def test_an_image_processor_that_does_more_is_refused(copy: Path) -> None:
    from models.onnx.graph import Graph
    from models.rewards.image_processor import open_processor

    folders.change(
        copy,
        "preprocessor_config.json",
        lambda said: said.update(image_processor_type="EfficientNetImageProcessor"),
    )
    graph = Graph(copy, copy, None, "x", "y", "float32", (None, 3, 32, 32), 18, ())  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="EfficientNetImageProcessor does more than resize"):
        open_processor(copy).preparation(graph, shown((40, 40, 3)))


@pytest.mark.parametrize(
    ("file", "changes", "wrong"),
    [
        ("config.json", {"auto_map": {"AutoModel": "a.B"}}, "auto_map: .* code of its own"),
        ("preprocessor_config.json", {"auto_map": {}}, "auto_map: .* code of its own"),
        ("config.json", {"architectures": ["ViTModel"]}, "ViTModel: a feature extractor"),
        ("config.json", {"architectures": ["CLIPModel"]}, "CLIPModel: a comparison of images"),
        ("config.json", {"architectures": ["YolosForObjectDetection"]}, "a detector, which has a"),
        ("config.json", {"architectures": ["SegformerForSemanticSegmentation"]}, "a segmenter"),
        ("config.json", {"architectures": None}, "says nothing: no image classifier"),
        ("config.json", {"pretrained_cfg": {"input_size": [3, 96, 64], "mean": [0.5, 0.4, 0.3]}},
         r"timm's: .* with --size 96x64 --mean 0\.5,0\.4,0\.3$"),
        ("config.json", {"problem_type": "multi_label_classification"},
         "its labels do not exclude each other: export it to ONNX"),
        ("config.json", {"problem_type": "regression"}, "it gives quantities and no classes"),
        ("config.json", {"num_hidden_layers": 2}, "lacks .* weights of the network"),
        ("config.json", {"num_hidden_layers": 0}, "has .* weights that config.json knows nothing"),
        ("config.json", {"id2label": {"0": "a", "1": "b"}}, "cannot load it|has other sizes for"),
        ("config.json", {"model_type": "acme"}, "transformers cannot load it"),
        ("config.json", {"image_size": 64}, "cannot load it|other sizes|does not take what its"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 64}},
         r"does not take what its preprocessor_config.json makes of an image, \[3, 64, 64\]"),
        ("preprocessor_config.json", {"image_mean": "x"}, "image_mean is 'x', must be a number"),
        ("preprocessor_config.json", {"size": {"longest_edge": 32}}, "its image processor"),
    ],
)  # fmt: skip
def test_what_is_no_judge_is_refused_for_what_it_is(
    copy: Path, tmp_path: Path, file: str, changes: dict[str, Any], wrong: str
) -> None:
    folders.change(copy, file, lambda said: said.update(changes))
    with pytest.raises(GraphError, match=wrong):
        import_(copy, (32, 32, 3), tmp_path / "judge.onnx")


@pytest.mark.parametrize(
    ("meaning", "wrong"),
    [
        (OutputMeaning(benign=("safe",)), "--benign safe: .* it has normal, drawing, nsfw"),
        (OutputMeaning(malign=("NSFW",)), "--malign NSFW: no class is called so"),
        (OutputMeaning(), "say which classes are malign .* has normal, drawing, nsfw"),
        (OutputMeaning(benign=(3,)), "--benign 3: it gives 3 numbers an image: 0 to 2"),
        (OutputMeaning(malign=("normal", "1", "nsfw")), "every class is named"),
        (OutputMeaning("sigmoid", benign=("normal",)), "says itself .* leave out --size"),
    ],
)
def test_labels_that_it_does_not_have_are_refused_with_those_that_it_has(
    vit: Path, tmp_path: Path, meaning: OutputMeaning, wrong: str
) -> None:
    with pytest.raises(GraphError, match=wrong):
        import_(vit, (32, 32, 3), tmp_path / "judge.onnx", meaning=meaning)


def test_pixels_of_ones_own_are_refused(vit: Path, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="says itself what it takes"):
        import_(vit, (32, 32, 3), tmp_path / "o.onnx", wanted=PreparationOptions(mean=(0.5,)))


def test_labels_that_are_ambiguous_or_alone_are_refused(tmp_path: Path) -> None:
    twice = folders.vit(tmp_path / "twice", ("a", "b", "b"))
    with pytest.raises(GraphError, match="--malign b: two classes are called so: say a number"):
        import_(twice, (32, 32, 3), tmp_path / "o.onnx", meaning=OutputMeaning(malign=("b",)))
    one = folders.vit(tmp_path / "one", ("a",))
    with pytest.raises(GraphError, match="id2label has 1 class"):
        import_(one, (32, 32, 3), tmp_path / "o.onnx", meaning=OutputMeaning(malign=("a",)))


def test_files_that_are_missing_or_pickled(copy: Path, tmp_path: Path) -> None:
    def refused(wrong: str) -> None:
        with pytest.raises(GraphError, match=wrong):
            import_(copy, (32, 32, 3), tmp_path / "judge.onnx")

    weights = load_file(copy / "model.safetensors")
    headless = {name: one for name, one in weights.items() if "classifier" not in name}
    save_file(headless, copy / "model.safetensors", metadata={"format": "pt"})
    refused("lacks 2 weights of the network .classifier.* was never trained as a classifier")
    (copy / "preprocessor_config.json").unlink()
    refused(r"has no preprocessor_config\.json, which says what pixels it takes")
    (copy / "model.safetensors").unlink()
    refused(r"has no model\.safetensors")
    torch.save({"a": torch.zeros(2)}, copy / "pytorch_model.bin")
    refused("a pickle can run code")
    (copy / "config.json").write_text("[]")
    refused("must hold a JSON object")
    with pytest.raises(GraphError, match="`hf download somebody/nsfw --local-dir DIR`"):
        import_(Path("somebody/nsfw"), (32, 32, 3), tmp_path / "judge.onnx")
    cache = copy / "snapshots" / "abc"
    cache.mkdir(parents=True)
    (copy / "config.json").rename(cache / "config.json")
    refused("it is in .*snapshots/abc")
    (cache / "config.json").unlink()
    refused(r"has no config\.json: is it a folder of transformers")


@pytest.mark.slow
def test_a_processor_that_says_one_thing_and_does_another_is_caught(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is held to what is done: a wrong filter, as if it had been read wrongly."""
    monkeypatch.setattr(
        ImageProcessor,
        "_options",
        lambda self, image, size: PreparationOptions(
            size=size, mean=(0.5,), std=(0.5,), resample="nearest"
        ),
    )
    with pytest.raises(GraphError, match=r"does more than resize, .* of 255 away"):
        import_(vit, (53, 47, 3), tmp_path / "judge.onnx")
    assert json.loads((vit / "preprocessor_config.json").read_text())["resample"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tolerance", "wrong"),
    [
        (classifier.TOLERANCE, "exported to ONNX, its logits are .* away from transformers' own"),
        (np.inf, "as a judge it scores up to .* away from transformers' own network and image"),
    ],
)
def test_an_export_that_went_wrong_is_caught_twice(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tolerance: float, wrong: str
) -> None:
    def export(network: nn.Module, *rest: Any) -> None:
        head = network.network.classifier
        with torch.no_grad():
            head.bias[0] += 1
            export_graph(network, *rest)
            head.bias[0] -= 1

    monkeypatch.setattr(classifier, "export_graph", export)
    monkeypatch.setattr(classifier, "TOLERANCE", tolerance)
    with pytest.raises(GraphError, match=wrong):
        import_(copy, (32, 32, 3), tmp_path / "judge.onnx")
