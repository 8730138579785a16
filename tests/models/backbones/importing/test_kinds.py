"""Which pipelines are known, by what stands in their files; and what stands against the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.backbones.importing.source import CannotImport
from models.bundles.bundle import load
from tests.imports import edit, import_folder
from tests.models.backbones.importing.conftest import Copy


@pytest.mark.parametrize(
    ("name", "kind", "inputs", "x_t", "image"),
    [
        ("ddpm", "pixels", "none", (3, 16, 16), (16, 16)),
        ("class", "pixels", "class", (3, 16, 16), (16, 16)),
        ("ldm", "latents", "none", (3, 16, 16), (32, 32)),
        ("ldm-vq", "latents", "none", (3, 16, 16), (32, 32)),
        ("sd", "text", "text", (4, 16, 16), (32, 32)),
        ("sdxl", "text-xl", "text", (4, 16, 16), (32, 32)),
        ("dit", "dit", "class", (4, 8, 8), (16, 16)),
    ],
)
def test_each_kind_becomes_a_bundle_that_verifies(
    pipeline: Copy, tmp_path: Path, name: str, kind: str, inputs: str, x_t: Any, image: Any
) -> None:
    folder = pipeline(name)
    made = import_folder(folder, tmp_path / "out")
    bundle = load(str(tmp_path / "out"))
    backbone = bundle.manifest.backbone
    assert backbone.training["kind"] == kind
    assert backbone.training["imported_from"] == name
    assert backbone.inputs.kind == inputs
    assert bundle.x_t_shape == x_t
    assert (backbone.height, backbone.width, backbone.channels) == (*image, 3)
    assert set(backbone.training["components"]) == set(made.weights)
    assert str(tmp_path) not in bundle.manifest.model_dump_json(), "whose machine is nobody's"


def test_the_name_of_the_pipeline_does_not_matter(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("sd")
    edit(folder / "model_index.json", _class_name="SomebodysOwnPipeline")
    assert import_folder(folder, tmp_path / "out").manifest.backbone.training["kind"] == "text"


def test_what_judges_or_looks_is_left_out_and_said(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("sd")
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"pickle")
    notes = "\n".join(import_folder(folder, tmp_path / "out").notes)
    assert "safety_checker: left out: Winnow's judge takes its place" in notes
    assert "feature_extractor: left out" in notes
    assert "image_encoder: left out" in notes
    assert "safety_checker/pytorch_model.bin: not copied, since it can run code" in notes
    assert not (tmp_path / "out/backbone/safety_checker").exists()


def test_code_is_never_copied(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    (folder / "pipeline.py").write_text("raise SystemExit('it ran')")
    (folder / "unet" / "model.py").write_text("raise SystemExit('it ran')")
    made = import_folder(folder, tmp_path / "out")
    for name in ("pipeline.py", "unet/model.py"):
        assert f"{name}: not copied, since it can run code" in made.notes
    assert not list((tmp_path / "out").rglob("*.py"))


def test_the_older_name_of_dit_is_known(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("dit")
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(
        folder / "transformer/config.json",
        _class_name="Transformer2DModel",
        norm_type="ada_norm_zero",
        cross_attention_dim=768,
    )
    import_folder(folder, tmp_path / "out")
    config = load(str(tmp_path / "out")).config("transformer")
    assert config["_class_name"] == "DiTTransformer2DModel"
    assert "cross_attention_dim" not in config


INDEX = "model_index.json"
UNET = "unet/config.json"
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("sd", INDEX, {"controlnet": ["diffusers", "ControlNetModel"]}, "ControlNet"),
    ("sd", INDEX, {"text_encoder_3": ["transformers", "T5EncoderModel"]}, "text_encoder_3 .T5"),
    ("sd", INDEX, {"text_encoder": None}, "a text encoder and its tokenizer must be there"),
    ("sd", INDEX, {"tokenizer": None}, "a text encoder and its tokenizer must be there"),
    ("sd", INDEX, {"vae": None}, "UNet2DConditionModel without an autoencoder"),
    ("sd", INDEX, {"unet": None}, "neither unet nor transformer"),
    ("sd", INDEX, {"scheduler": None}, "no scheduler"),
    ("sd", INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}, "is for a AutoencoderKL, and"),
    ("sd", INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel is not"),
    ("sd", INDEX, {"tokenizer": ["transformers", "T5Tokenizer"]}, "T5Tokenizer.* is not"),
    ("sd", "text_encoder/config.json", {"architectures": ["RobertaModel"]}, "RobertaModel is not"),
    ("sd", UNET, {"in_channels": 9}, "in_channels is 9, and vae has 4.*inpainting"),
    ("sd", UNET, {"in_channels": 8}, "edits a given image"),
    ("sd", UNET, {"in_channels": 7}, "in_channels is 7, and vae has 4 channels$"),
    ("sd", UNET, {"out_channels": 5}, "5 out_channels for 4"),
    ("sd", UNET, {"addition_embed_type": "image"}, "addition_embed_type 'image'"),
    ("sd", UNET, {"addition_embed_type": "text_time"}, "text_time' with text_encoder"),
    ("sd", UNET, {"class_embed_type": "projection"}, "class_embed_type 'projection'"),
    ("sd", UNET, {"num_class_embeds": 1000}, "num_class_embeds 1000"),
    ("sd", UNET, {"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type"),
    ("sd", UNET, {"cross_attention_dim": 768}, "cross_attention_dim is 768, and text_encoder give"),
    ("sdxl", INDEX, {"text_encoder": None, "tokenizer": None}, "refiner"),
    ("sdxl", UNET, {"projection_class_embeddings_input_dim": 2560}, "refiner"),
    ("sdxl", UNET, {"addition_embed_type": None}, "addition_embed_type None with text_encoder and"),
    ("ddpm", UNET, {"time_embedding_type": "fourier"}, "variance-exploding"),
    ("ddpm", UNET, {"_class_name": "UNet3DConditionModel"}, "is for a UNet3DConditionModel, and"),
    ("ddpm", INDEX, {"prior": ["diffusers", "PriorTransformer"]}, r"prior \(PriorTransformer\)"),
    ("ddpm", INDEX, {"unet": ["diffusers", "Kandinsky3UNet"]}, "is for a UNet2DModel, and"),
    ("dit", "transformer/config.json", {"norm_type": "ada_norm_single"}, "ada_norm_single is not"),
    ("sd", "vae/config.json", {"latent_channels": None}, "does not say 'latent_channels'"),
    ("ldm", UNET, {"in_channels": 4}, "in_channels is 4, and vqvae has 3"),
    ("ddpm", INDEX, {"unet": ["mine", "UNet2DModel"]}, "model_index.json: unet is .* of 'mine'"),
    ("ddpm", UNET, {"in_channels": "3"}, f"^{UNET}: in_channels is '3', must be a whole number"),
    ("ddpm", UNET, {"block_out_channels": 5}, f"^{UNET}: block_out_channels is 5, must be a list"),
    ("ddpm", UNET, {"block_out_channels": []}, f"^{UNET}: block_out_channels is .., must be whole"),
    ("ddpm", UNET, {"sample_size": [1.5, "x"]}, f"^{UNET}: sample_size is .* must be whole num"),
    ("ddpm", UNET, {"sample_size": "x"}, f"^{UNET}: sample_size is 'x', must be a whole number"),
    ("ddpm", UNET, {"num_class_embeds": [3]}, rf"^{UNET}: num_class_embeds is \[3\], must be"),
    ("class", UNET, {"num_class_embeds": 10**9}, f"^{UNET}: num_class_embeds is .* 1 to 100000"),
    ("sd", "text_encoder/config.json", {"architectures": 5}, "config.json: cannot be made sense"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "changes", "words"), REFUSED)
def test_what_is_not_known_is_refused_by_name(
    pipeline: Copy, tmp_path: Path, name: str, file: str, changes: dict[str, Any], words: str
) -> None:
    folder = pipeline(name)
    edit(folder / file, **changes)
    with pytest.raises(CannotImport, match=words):
        import_folder(folder, tmp_path / "out")


@pytest.mark.parametrize("what", ["HunyuanDiT2DModel", "HiDreamImageTransformer2DModel"])
def test_another_transformer_is_refused_with_what_there_is(
    pipeline: Copy, tmp_path: Path, what: str
) -> None:
    folder = pipeline("dit")
    edit(folder / INDEX, transformer=["diffusers", what])
    edit(folder / "transformer/config.json", _class_name=what)
    with pytest.raises(CannotImport, match=f"{what} is not a denoiser.*DiT.*FLUX"):
        import_folder(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pixel_shuffle": 2}, "folds 4 pixels into channels, and the U-Net has 3"),
        ({"size": "16"}, "is not HxW"),
        ({"size": "17x16"}, "17x16: this model needs multiples of 2, such as 16x16"),
        ({"size": "0x16"}, "multiples of 2"),
    ],
)
def test_a_size_that_the_networks_cannot_make_is_refused(
    pipeline: Copy, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotImport, match=words):
        import_folder(pipeline("ddpm"), tmp_path / "out", **options)


def test_sizes_go_through_the_autoencoder(pipeline: Copy, tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="multiples of 4"):
        import_folder(pipeline("sd"), tmp_path / "out", size="34x32")
    import_folder(tmp_path / "pipelines/sd", tmp_path / "wide", size="32x64")
    assert load(str(tmp_path / "wide")).x_t_shape == (4, 16, 32)


def test_shuffled_pixels_are_channels(pipeline: Copy, tmp_path: Path) -> None:
    import diffusers

    folder = pipeline("ddpm")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    with pytest.raises(CannotImport, match="4 channels: must be 1 or 3: --pixel-shuffle 2, perh"):
        import_folder(folder, tmp_path / "out")
    made = import_folder(folder, tmp_path / "shuffled", pixel_shuffle=2)
    backbone = made.manifest.backbone
    assert (backbone.height, backbone.width, backbone.channels) == (16, 16, 1)
    with pytest.raises(CannotImport, match="is for a U-Net on pixels, this is"):
        import_folder(pipeline("ldm"), tmp_path / "latent", pixel_shuffle=2)
