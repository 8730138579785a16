"""Where a pipeline comes from, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.backbones.importing.licence import NOT_STATED, licence
from models.backbones.importing.reference import open_source
from models.backbones.importing.source import CannotImport
from models.bundles.bundle import load
from tests.imports import import_folder
from tests.models.backbones.importing.conftest import Copy


def test_what_is_no_pipeline_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="no such folder or file, and not a hub id"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(CannotImport, match=r"no model_index.json.*save_pretrained"):
        open_source(str(tmp_path))
    (tmp_path / "v1-5.ckpt").write_bytes(b"pickle")
    with pytest.raises(CannotImport, match=r"v1-5.ckpt looks like an original checkpoint"):
        open_source(str(tmp_path))
    for text, words in (("{", "is not JSON"), ("[]", "must hold a JSON object")):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(CannotImport, match=words):
            open_source(str(tmp_path))


def test_a_hub_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(CannotImport, match=r"did not give it \(no route to host\).*hf download"):
        open_source("owner/model")


def test_of_a_hubs_repository_only_what_is_read_is_fetched(
    pipeline: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = pipeline("sd"), []

    def fetch(repository: str, **options: Any) -> str:
        assert repository == "owner/model"
        asked.append(options)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = open_source("owner/model", revision="main")
    assert (found.name, found.revision) == ("owner/model", folder.name)
    patterns = [pattern for one in asked for pattern in one["allow_patterns"]]
    assert "unet/*.safetensors" in patterns
    assert "tokenizer/*.txt" in patterns
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".py", ".ckpt"))]
    assert "*.fp16*" in asked[-1]["ignore_patterns"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, NOT_STATED),
        ({"README.md": "---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n"}, "apache-2.0"),
        (
            {"README.md": "---\nlicense: other\nlicense_name: open-rail\nlicense_link: X\n---\n"},
            "open-rail (X)",
        ),
        ({"README.md": "# A model\n\n---\nlicense: mit\n---\n"}, NOT_STATED),
        ({"README.md": "---\n: [\n---\n"}, NOT_STATED),
        ({"LICENSE": "\nMIT License\n\nCopyright"}, "MIT License"),
        ({"README.md": "no front matter", "LICENSE.txt": "BSD"}, "BSD"),
    ],
)  # fmt: skip
def test_a_licence_is_read_from_card_or_file(
    tmp_path: Path, files: dict[str, str], found: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence(tmp_path) == found


def test_a_bundle_states_its_licence_or_warns(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    made = import_folder(folder, tmp_path / "a")
    assert made.manifest.licence == NOT_STATED
    assert any("licence: not stated" in note for note in made.notes)
    made = import_folder(folder, tmp_path / "b", licence="CC0", description="Blobs.")
    assert (made.manifest.licence, made.manifest.description) == ("CC0", "Blobs.")
    assert not any("licence" in note for note in made.notes)


def test_the_text_of_a_licence_comes_along(pipeline: Copy, tmp_path: Path) -> None:
    folder = pipeline("ddpm")
    (folder / "LICENSE").write_text("CreativeML Open RAIL-M\n\nPass this on.")
    made = import_folder(folder, tmp_path / "out")
    assert made.manifest.licence == "CreativeML Open RAIL-M"
    assert "Pass this on." in (tmp_path / "out/LICENSE.txt").read_text()
    load(str(tmp_path / "out"))
