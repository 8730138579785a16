"""The most memory that an import needs: `python -m loadtest.bench.import_memory [--draw DTYPE]`.

A Stable Diffusion 1 of random float16 weights (860 M parameters of U-Net, 1.07 G in all) is
imported from its folder and from one file, each in a process of its own, whose peak of resident
memory the kernel says. `--draw float16` adds the whole command, with its two images of 512 × 512.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from loadtest.bench.report import save, show
from models.bundles.bundle import WEIGHTS
from tests.pipelines import END, STABLE, tokenizer
from tests.single_files import clip_l, ldm_unet, ldm_vae

MAKE = """
import sys
from pathlib import Path
from models.backbones.importing.bundle_folder import Options, make
from models.backbones.importing.reference import open_source
path, base, scratch, out = map(Path, sys.argv[1:])
given = {} if path == base else {"base": base, "scratch": scratch}
make(open_source(str(path), **given), out, Options("m"), lambda stage, total: lambda done: None)
"""
WINNOW = "from service.cli.main import app; app()"
LEVELS = 4


def write(folder: Path) -> Path:
    """A pipeline with random weights in `folder / "base"`, and the same as one file."""
    base = folder / "base"
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * LEVELS,
            up_block_types=("UpDecoderBlock2D",) * LEVELS,
            layers_per_block=2,
            sample_size=512,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768
            )
        )
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for name, network in parts.items():
        library, file = (
            ("transformers", "model.safetensors")
            if name == "text_encoder"
            else ("diffusers", WEIGHTS)
        )
        if library == "transformers":
            text.config.save_pretrained(base / name)
        else:
            network.save_config(base / name)
        states = {key: _random(key, value) for key, value in network.state_dict().items()}
        save_file(states, base / name / file, {"format": "pt"})
        network.load_state_dict(load_file(base / name / file), assign=True)
        index[name] = [library, type(network).__name__]
    tokenizer(base / "tokenizer", END)
    DDIMScheduler.from_config(STABLE).save_pretrained(base / "scheduler")
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    (base / "model_index.json").write_text(json.dumps(index))
    states = ldm_unet(unet) | ldm_vae(vae) | clip_l(text, "cond_stage_model.transformer.")
    path = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in states.items()}, path)
    return path


def _random(name: str, like: torch.Tensor) -> torch.Tensor:
    """Small enough that 150 layers of them stay finite in float16."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if "norm" in name and name.endswith("weight"):
        return torch.ones(like.shape, dtype=torch.half)
    width = like[0].numel() if like.ndim > 1 else 50
    return torch.randn(like.shape, dtype=torch.half) * (0.5 / width) ** 0.5


def peak(command: list[str]) -> int:
    """Run a command; the most bytes that it had resident."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:3]} failed with {process.returncode}")
    return usage.ru_maxrss * 1024


def main() -> None:
    """Measure, print one table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", metavar="DTYPE", help="float32, bfloat16 or float16")
    dtype = parser.parse_args().draw
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # In a process of its own: the kernel counts a parent's peak as its child's.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            path = pool.submit(write, folder).result()
        base = folder / "base"
        weights = path.stat().st_size
        for what, source in (("a folder", base), ("one file", path)):
            scratch, out = folder / f"{what} scratch", folder / what
            scratch.mkdir()
            script = [str(one) for one in (source, base, scratch, out)]
            rows.append((f"{what}, made and checked", peak([sys.executable, "-c", MAKE, *script])))
        if dtype is not None:
            command = [sys.executable, "-c", WINNOW, "bundle", "import", str(base)]
            options = ["--out", str(folder / "drawn"), "--dtype", dtype, "--check-steps", "2"]
            rows.append((f"whole command, {dtype}", peak([*command, *options])))
    show(
        f"Import of {weights / 1e9:.2f} GB of float16 weights",
        ["import of", "most resident, GB", "times the weights (goal: 1.3)"],
        [[what, f"{found / 1e9:.2f}", f"{found / weights:.2f}"] for what, found in rows],
    )
    save("import_memory", {"weights_bytes": weights, "rows": rows})


if __name__ == "__main__":
    main()
