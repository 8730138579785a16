"""What the Labelling deployment loads itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.bundles import bundle as bundles
from models.diffusion.condition import Condition, ConditionError
from service.config import BackboneSettings
from service.errors import StoreUnavailable
from service.serving.labelling import generator
from tests.parity import Made


def test_a_training_reads_prompts_as_the_service_does(tmp_path: Path) -> None:
    bundle = Made.make("sd", tmp_path).bundle
    long = Condition("cat " * 100)
    generator(bundle, BackboneSettings(runtime="torch"), 1).encoder.check(long, 0)
    refuses = BackboneSettings(runtime="torch", prompt_overflow="refuse")
    with pytest.raises(ConditionError, match="25 more than the 77"):
        generator(bundle, refuses, 1).encoder.check(long, 0)


@pytest.mark.parametrize("part", ["onnx", "schedule", "unet"])
def test_a_backbone_that_was_changed_since_the_start_trains_nothing(
    bundle_folder: Path, part: str
) -> None:
    bundle = bundles.load(str(bundle_folder))
    backbone = bundle.manifest.backbone
    name = {
        "onnx": backbone.onnx,
        "schedule": f"{backbone.folder}/{bundles.SCHEDULER}",
        "unet": f"{backbone.folder}/unet/{bundles.WEIGHTS}",
    }[part]
    bundle.path(name).write_bytes(b"another")
    with pytest.raises(StoreUnavailable, match=f"{name} was changed since the service started"):
        generator(bundle, BackboneSettings(runtime="onnx"), 1)
