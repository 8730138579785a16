from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.bundles import bundle
from models.bundles.bundle import MANIFEST, BundleError

JUDGE = "rewards/bright/judge.onnx"


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / JUDGE).read_bytes())
    data[0] ^= 1
    (folder / JUDGE).write_bytes(data)


def test_a_whole_bundle_loads_and_names_its_weights_by_hash(bundle_folder: Path) -> None:
    loaded = bundle.load(str(bundle_folder))
    assert loaded.path(JUDGE) == bundle_folder / JUDGE
    assert loaded.sha256(JUDGE) == f"sha256:{loaded.manifest.files[JUDGE].sha256}"
    assert loaded.backbone_sha256("onnx").startswith("sha256:")


@pytest.mark.parametrize(
    ("damage", "file", "remedy"),
    [
        (_flip_a_bit, JUDGE, "Fetch the bundle again"),
        (lambda f: (f / JUDGE).write_bytes(b""), JUDGE, "Fetch the bundle again"),
        (lambda f: (f / JUDGE).unlink(), JUDGE, "fetch the bundle again"),
        (lambda f: (f / "extra.onnx").write_text(""), "extra.onnx", "Delete it"),
        (lambda f: (f / "weights.pt").write_text(""), "weights.pt", "convert them to safetensors"),
        (lambda f: (f / "weights.bin").write_text(""), "weights.bin", "convert them"),
        (lambda f: (f / "last.ckpt").write_text(""), "last.ckpt", "convert them"),
        (lambda f: (f / "a.pickle").write_text(""), "a.pickle", "convert them"),
        (lambda f: (f / "run.py").write_text(""), "run.py", "delete the file"),
        (lambda f: _edit(f, lambda d: d.update(schema_version=2)), MANIFEST, "upgrade Winnow"),
        (lambda f: _edit(f, lambda d: d.update(colour=1)), MANIFEST, "colour"),
        (lambda f: _edit(f, lambda d: d["backbone"].update(dtype=1)), MANIFEST, "backbone.dtype"),
        (lambda f: _edit(f, lambda d: d.pop("licence")), MANIFEST, "licence"),
        (lambda f: (f / MANIFEST).write_text("{"), MANIFEST, "JSON"),
        (lambda f: (f / MANIFEST).unlink(), MANIFEST, "is this a bundle?"),
    ],
)  # fmt: skip
def test_damage_is_refused_with_the_file_and_the_remedy(
    bundle_folder: Path, damage: Callable[[Path], object], file: str, remedy: str
) -> None:
    damage(bundle_folder)
    with pytest.raises(BundleError) as refusal:
        bundle.load(str(bundle_folder))
    assert str(bundle_folder / file) in str(refusal.value)
    assert remedy in str(refusal.value)


def test_a_pickle_is_refused_even_if_the_manifest_vouches_for_it(bundle_folder: Path) -> None:
    (bundle_folder / "weights.pt").write_bytes(b"\x80\x04")
    bundle.write_manifest(bundle_folder, bundle.read_manifest(bundle_folder))
    with pytest.raises(BundleError, match=r"weights\.pt.*Pickled weights can run code"):
        bundle.load(str(bundle_folder))


def test_a_name_that_the_manifest_lists_outside_the_folder_is_refused(bundle_folder: Path) -> None:
    outside = bundle_folder.parent / "outside.onnx"
    outside.write_bytes(b"weights of somebody else")
    entry = bundle.hash_files(outside.parent)["outside.onnx"].model_dump()
    _edit(bundle_folder, lambda d: d["files"].update({"../outside.onnx": entry}))
    with pytest.raises(BundleError, match=r"outside\.onnx"):
        bundle.load(str(bundle_folder))


def test_a_part_that_the_manifest_does_not_list_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match=rf"{MANIFEST}.*'other\.onnx'"):
        bundle.load(str(bundle_folder)).path("other.onnx")


def test_an_unknown_bundle_is_refused_with_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a folder nor a shipped bundle"):
        bundle.load(str(tmp_path / "nowhere"))


def test_an_update_never_trusts_what_was_changed_meanwhile(bundle_folder: Path) -> None:
    _flip_a_bit(bundle_folder)
    bundle.update_manifest(bundle_folder, lambda now: now.model_copy(update={"licence": "new"}))
    assert bundle.read_manifest(bundle_folder).licence == "new"
    with pytest.raises(BundleError, match="sha256"):
        bundle.load(str(bundle_folder))


def test_a_link_is_refused_wherever_it_leads(bundle_folder: Path, tmp_path: Path) -> None:
    """A linked folder is not walked through, so what lies there would be read unverified."""
    elsewhere = tmp_path / "elsewhere"
    (bundle_folder / "rewards").rename(elsewhere)
    (bundle_folder / "rewards").symlink_to(elsewhere)
    with pytest.raises(BundleError, match=r"rewards: a link: put the file itself"):
        bundle.load(str(bundle_folder))


def test_an_index_of_parts_is_refused_even_if_the_manifest_vouches_for_it(
    bundle_folder: Path,
) -> None:
    """diffusers would read the parts in place of the weights that the backbone is named by."""
    name = f"{bundle.WEIGHTS}.index.json"
    (bundle_folder / "backbone" / "unet" / name).write_text("{}")
    bundle.write_manifest(bundle_folder, bundle.read_manifest(bundle_folder))
    with pytest.raises(BundleError, match=r"index\.json: an index of parts"):
        bundle.load(str(bundle_folder))
