"""Exported graphs against the U-Net that they came from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import UNet2DModel

from models.backbones.runtime import OnnxDenoiser, TorchDenoiser
from models.backbones.unet import SCHEDULER_CONFIG, UNET_CONFIG, save_pipeline
from models.diffusion.codec import PixelShuffle
from models.diffusion.noise_schedule import NoiseSchedule
from models.onnx.export import export_fp32, noised_inputs, quantise

pytestmark = pytest.mark.slow

SMALL = UNET_CONFIG | {"block_out_channels": (16, 16), "attention_head_dim": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("backbone")
    unet = UNet2DModel(**SMALL)
    save_pipeline(unet, folder)
    export_fp32(unet, folder / "fp32.onnx")
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28)).astype(np.uint8)
    schedule = NoiseSchedule.from_diffusers(SCHEDULER_CONFIG)
    quantise(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        *noised_inputs(images, schedule, PixelShuffle(2), count=64),
    )
    return folder


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    timestep = torch.randint(1000, (n,), generator=generator)
    return torch.randn(n, 4, 14, 14, generator=generator), timestep


@pytest.mark.parametrize("n", [1, 3, 8])
def test_fp32_graph_is_the_network(folder: Path, n: int) -> None:
    x_t, timestep = inputs(n)
    wanted = TorchDenoiser(folder)(x_t, timestep)
    got = OnnxDenoiser(folder / "fp32.onnx")(x_t, timestep)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_timestep_of_each_row_counts(folder: Path) -> None:
    x_t, _ = inputs(1)
    denoise = OnnxDenoiser(folder / "fp32.onnx")
    same = x_t.expand(2, -1, -1, -1)
    early, late = denoise(same, torch.tensor([10, 900]))
    assert (early - late).abs().max() > 1e-3
    torch.testing.assert_close(late, denoise(x_t, torch.tensor([900]))[0])


def test_int8_graph_is_close_and_no_row_depends_on_the_batch(folder: Path) -> None:
    x_t, timestep = inputs(8)
    wanted = OnnxDenoiser(folder / "fp32.onnx")(x_t, timestep)
    denoise = OnnxDenoiser(folder / "int8.onnx")
    got = denoise(x_t, timestep)
    error = (got - wanted).norm() / wanted.norm()
    assert 1e-5 < error < 0.1  # quantised indeed, and still the network
    alone = torch.cat([denoise(x_t[i : i + 1], timestep[i : i + 1]) for i in range(8)])
    assert torch.equal(got, alone)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there"
)
def test_missing_cuda_falls_back_to_the_cpu_and_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        denoise = OnnxDenoiser(folder / "fp32.onnx", device="cuda:1")
    assert "has no CUDAExecutionProvider" in caplog.text
    assert denoise(*inputs(1)).shape == (1, 4, 14, 14)


def test_compilation_that_fails_is_reported_and_the_model_runs(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    denoise = TorchDenoiser(folder)
    wanted = denoise(*inputs(2))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    denoise._compiled = fail
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(denoise(*inputs(2)), wanted)
    assert "torch.compile failed (no compiler)" in caplog.text


def test_bfloat16_runs_and_returns_float32(folder: Path) -> None:
    x_t, timestep = inputs(2)
    got = TorchDenoiser(folder, dtype=torch.bfloat16)(x_t, timestep)
    wanted = TorchDenoiser(folder)(x_t, timestep)
    assert got.dtype == torch.float32
    assert 1e-5 < (got - wanted).norm() / wanted.norm() < 0.05
