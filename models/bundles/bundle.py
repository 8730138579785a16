"""A bundle: a folder that can be served, with a manifest that vouches for every byte in it.

Nothing in a bundle is loaded before its hash has been compared with the manifest, and nothing in
it can run code: weights are safetensors or ONNX, the rest is JSON, text or PNG.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from models.bundles.manifest import SCHEMA_VERSION, File, Manifest
from models.bundles.sampling_key import BackboneKey

MANIFEST = "manifest.json"
ALLOWED_SUFFIXES = frozenset({".safetensors", ".onnx", ".json", ".txt", ".png", ".md"})
ZOO = Path(__file__).parents[1] / "zoo"


class BundleError(ValueError):
    """The bundle cannot be trusted or read; the message names the file and what to do."""


class Bundle:
    """A verified bundle: every path that it gives out has the hash that the manifest states."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    def path(self, name: str) -> Path:
        """The path of a file of the bundle, by its name in the manifest."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder / MANIFEST}: {name!r} is not among its files")
        return self.folder / name

    def sha256(self, name: str) -> str:
        """`sha256:<hex>` of a file of the bundle: how plans and responses name weights."""
        self.path(name)
        return f"sha256:{self.manifest.files[name].sha256}"

    def reward_sha256(self, reward: str) -> dict[str, str]:
        """`sha256` of each file of a reward, by its name in the reward's `parts`."""
        parts = self.manifest.rewards[reward].parts
        return {part: self.sha256(file) for part, file in parts.items()}

    def backbone_sha256(self, runtime: Literal["onnx", "torch"]) -> str:
        """The name of what draws: the weights that this runtime reads.

        The file's hash for an unconditional graph of pixels. Otherwise it is a hash of the
        hashes of all that an image depends on: every network and configuration, tokenizers, and
        what the manifest says of size and inputs. Raises BundleError when there is no denoiser
        for this runtime.
        """
        backbone = self.manifest.backbone
        denoiser = f"{backbone.folder}/{backbone.denoiser}/{WEIGHTS}"
        if runtime == "onnx":
            if backbone.onnx is None:
                raise BundleError(
                    f"bundle {self.manifest.name!r} has no denoiser for ONNX Runtime: set "
                    "models.<name>.backbone.runtime: torch"
                )
            denoiser = backbone.onnx
        inputs = backbone.inputs
        bare = inputs.kind == "none" and not (backbone.autoencoder or backbone.classifier)
        if bare and runtime == "onnx":
            return self.sha256(denoiser)
        network = f"{backbone.folder}/{backbone.denoiser}/{WEIGHTS}"
        whole = backbone.kind == "pipeline"  # each of its files is part of what draws
        used = {
            name: self.sha256(name)
            for name in self.manifest.files
            if name.startswith(f"{backbone.folder}/")
            and (whole or name not in (network, backbone.onnx))
            and Path(name).name not in UNUSED
        }
        for name in (None if whole else denoiser, backbone.classifier):
            if name is not None:
                used[name] = self.sha256(name)
        said: dict[str, Any] = {
            "size": [backbone.height, backbone.width, backbone.channels, backbone.pixel_shuffle],
            "inputs": [inputs.kind, len(inputs.class_names), inputs.null_class],
        }
        if whole:
            said["kind"] = [backbone.kind, inputs.guidance]
        everything = json.dumps([sorted(used.items()), said], sort_keys=True)
        return f"sha256:{hashlib.sha256(everything.encode()).hexdigest()}"

    def backbone_key(
        self, runtime: Literal["onnx", "torch"], dtype: str = "float32", forward: bool = False
    ) -> BackboneKey:
        """What draws; `forward` where the denoiser in torch is there for forward guidance.

        Raises BundleError when there is no denoiser for this runtime.
        """
        gradient = self.backbone_sha256("torch") if forward and runtime == "onnx" else None
        return BackboneKey(self.backbone_sha256(runtime), self.schedule_sha256, dtype, gradient)

    @property
    def schedule_sha256(self) -> str:
        """The hash of the noise schedule and the other settings of diffusers' scheduler."""
        return self.sha256(f"{self.manifest.backbone.folder}/{SCHEDULER}")

    @property
    def x_t_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of x_t in the backbone's space, at the default size; of a whole pipeline, whose
        x_t nobody sees, that of its image."""
        backbone = self.manifest.backbone
        return self._x_t_shape(backbone.height, backbone.width)

    @property
    def x_t_shapes(self) -> dict[tuple[int, int], tuple[int, int, int]]:
        """The same at each other size, by [H, W] of the image."""
        return {size: self._x_t_shape(*size) for size in self.manifest.backbone.other_sizes}

    def _x_t_shape(self, height: int, width: int) -> tuple[int, int, int]:
        backbone = self.manifest.backbone
        if backbone.kind == "pipeline":
            return backbone.channels, height, width
        if backbone.latents is not None:
            channels, factor = backbone.latents
            return channels, height // factor, width // factor
        if backbone.autoencoder is not None:
            # Each of its levels but the last halves the image.
            factor = 2 ** (len(self.config(backbone.autoencoder)["block_out_channels"]) - 1)
            channels = int(self.config(backbone.denoiser)["in_channels"])
            return channels, height // factor, width // factor
        factor = backbone.pixel_shuffle
        return backbone.channels * factor**2, height // factor, width // factor

    def config(self, component: str) -> dict[str, Any]:
        """The `config.json` of a component of the backbone."""
        path = self.path(f"{self.manifest.backbone.folder}/{component}/config.json")
        config: dict[str, Any] = json.loads(path.read_text())
        return config

    @property
    def num_train_timesteps(self) -> int:
        """T: no trajectory has more steps."""
        config = json.loads(self.path(f"{self.manifest.backbone.folder}/{SCHEDULER}").read_text())
        return int(config.get("num_train_timesteps", 1000))


WEIGHTS = "diffusion_pytorch_model.safetensors"
UNUSED = frozenset({"README.md", "LICENSE.txt"})
"""No image depends on these."""


SCHEDULER = "scheduler/scheduler_config.json"


def find(reference: str) -> Path:
    """The folder of a bundle: a path, or the name of one that ships in `models/zoo`."""
    path = Path(reference)
    if path.is_dir():
        return path
    if "/" not in reference and (ZOO / reference).is_dir():
        return ZOO / reference
    shipped = ", ".join(sorted(p.parent.name for p in ZOO.glob(f"*/{MANIFEST}"))) or "none"
    raise BundleError(
        f"bundle {reference!r} is neither a folder nor a shipped bundle (shipped: {shipped})"
    )


def load(reference: str) -> Bundle:
    """Read and verify a bundle. Raises BundleError, naming the file and the remedy."""
    folder = find(reference)
    manifest = read_manifest(folder)
    for path in folder.rglob("*"):
        # What lies behind a link may change after it was verified, and a linked folder is not seen.
        if path.is_symlink():
            raise BundleError(f"{path}: a link: put the file itself into the bundle")
    present = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    for name in present:
        if Path(name).suffix not in ALLOWED_SUFFIXES:
            allowed = ", ".join(sorted(ALLOWED_SUFFIXES))
            raise BundleError(
                f"{folder / name}: not a kind of file that a bundle may hold ({allowed}). "
                "Pickled weights can run code: convert them to safetensors, or delete the file"
            )
        if name.endswith(".index.json"):
            raise BundleError(
                f"{folder / name}: an index of parts, which would be read in place of the weights "
                "that the manifest names: `winnow bundle import` makes one file of them"
            )
        if name != MANIFEST and name not in manifest.files:
            raise BundleError(
                f"{folder / name}: not listed in the manifest. Delete it, or run "
                f"`winnow train pack` if you put it there"
            )
    for name, expected in manifest.files.items():
        # `present` holds only what lies inside the folder: a name such as ../x is not in it.
        if name not in present:
            raise BundleError(
                f"{folder / name}: listed in the manifest but missing: fetch the bundle again"
            )
        _verify(folder / name, expected)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, not yet compared with the files. Raises BundleError."""
    path = folder / MANIFEST
    try:
        text = path.read_text()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}): is this a bundle?") from None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{path}: {where}: {first['msg']}") from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version {manifest.schema_version} is unknown here (this Winnow reads "
            f"{SCHEMA_VERSION}): upgrade Winnow, or pack the bundle again"
        )
    return manifest


def hash_files(folder: Path) -> dict[str, File]:
    """The `files` table of a folder: all that it holds but the manifest itself."""
    return {
        str(path.relative_to(folder)): File(sha256=_sha256(path), bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder just made, with fresh hashes of all files."""
    _replace(folder, manifest.model_copy(update={"files": hash_files(folder)}))


def update_manifest(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Change what the manifest says beside its hashes, from what stands there now.

    The hashes stay: a file that was changed meanwhile must not become trusted by this.
    """
    now = read_manifest(folder)
    _replace(folder, change(now).model_copy(update={"files": now.files}))


def add_files(
    folder: Path, made: Mapping[str, Path], change: Callable[[Manifest], Manifest]
) -> None:
    """Put files into a verified bundle under these names, and vouch for them and no others."""
    for name, source in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    now = read_manifest(folder)
    fresh = {
        name: File(sha256=_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in made
    }
    files = dict(sorted({**now.files, **fresh}.items()))
    _replace(folder, change(now).model_copy(update={"files": files}))


def _replace(folder: Path, manifest: Manifest) -> None:
    fresh = folder / f"{MANIFEST}.new"
    fresh.write_text(manifest.model_dump_json(indent=2) + "\n")
    os.replace(fresh, folder / MANIFEST)


def _verify(path: Path, expected: File) -> None:
    if path.stat().st_size != expected.bytes or _sha256(path) != expected.sha256:
        raise BundleError(
            f"{path}: its sha256 is not the manifest's: the file was changed or cut short. "
            "Fetch the bundle again"
        )


def sha256_name(path: Path) -> str:
    """`sha256:<hex>` of any file, as `Bundle.sha256` will name it."""
    return f"sha256:{_sha256(path)}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
