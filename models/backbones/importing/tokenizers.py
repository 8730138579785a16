"""A tokenizer of transformers, as two files of JSON: nothing else is read at a start."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from models.backbones.importing.source import CannotImport, Source, short
from models.backbones.importing.weight_checks import quietly

FILES = ("tokenizer.json", "tokenizer_config.json")
TEMPLATE = "chat_template.jinja"


def write_tokenizer(source: Source, name: str, target: Path) -> None:
    """Write a component of a pipeline as `FILES` in `target`, which must be new.

    What it was made of (a sentencepiece model, a vocabulary and merges) is converted by
    transformers, a template of conversations put into the configuration. Raises CannotImport.
    """
    import transformers

    _, class_name = source.components[name]
    folder = source.folder / name
    cls = getattr(transformers, class_name, None)
    if cls is None:
        raise CannotImport(f"{name}: this transformers has no {class_name}")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with quietly():
                tokenizer = cls.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
                tokenizer("a word")
                tokenizer.save_pretrained(scratch)
        except Exception as error:  # whatever a library makes of wrong files
            raise CannotImport(
                f"{name}: {class_name} cannot read its files: {short(error)}"
            ) from None
        target.mkdir(parents=True)
        for file in FILES:
            if not (made := Path(scratch) / file).is_file():
                raise CannotImport(f"{name}: {class_name} cannot be written as {FILES[0]}")
            document = json.loads(made.read_text())
            if file == FILES[1]:
                for key in ("auto_map", "name_or_path"):
                    document.pop(key, None)
                if (template := Path(scratch) / TEMPLATE).is_file():
                    document["chat_template"] = template.read_text()
            (target / file).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n")
