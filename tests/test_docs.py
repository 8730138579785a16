"""The documents name everything that exists: each setting, each metric, each command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel
from typer.main import get_command

from service.cli.certify import PolicyOrCommand
from service.cli.main import app
from service.config import Settings
from service.metrics.backbone import BackboneMetrics
from service.metrics.ingress import IngressMetrics
from service.metrics.judge import JudgeMetrics

ROOT = Path(__file__).parents[1]


def settings_of(model: type[BaseModel]) -> set[str]:
    """The names of all fields below a settings class."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= settings_of(part)
    return names


@pytest.mark.parametrize("name", sorted(settings_of(Settings)))
def test_every_setting_is_documented(name: str) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    assert re.search(rf"\b{name}\b", text), f"docs/configuration.md does not name {name}"


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    registries = (
        IngressMetrics().registry,
        BackboneMetrics("m", 1).registry,
        JudgeMetrics("m").registry,
    )
    for registry in registries:
        for family in registry.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            assert f"`{name}`" in text, f"docs/metrics.md does not name {name}"


def test_every_documented_metric_exists() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    known = {
        family.name + ("_total" if family.type == "counter" else "")
        for metrics in (IngressMetrics(), BackboneMetrics("m", 1), JudgeMetrics("m"))
        for family in metrics.registry.collect()
    }
    assert set(re.findall(r"^\| `(winnow_\w+)`", text, re.MULTILINE)) == known


def test_commands_named_in_documents_exist() -> None:
    root = get_command(app)
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for words in re.findall(r"\bwinnow ((?:[a-z]+ ?)+)", document.read_text()):
            name, *rest = words.split()
            commands = getattr(root, "commands", {})
            if name in commands:
                below = getattr(commands[name], "commands", None)
                # `winnow certify POLICY` begins; its group says so itself.
                if below is not None and rest and not isinstance(commands[name], PolicyOrCommand):
                    assert rest[0] in below, f"{document.name}: winnow {words}"


def test_the_example_of_several_models_is_a_configuration() -> None:
    text = (ROOT / "docs/models.md").read_text()
    example = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    settings = Settings.model_validate(example | {"auth": {"anonymous": True}})
    assert len(settings.models) > 1
    assert settings.policies[settings.default_policy].trained


def test_every_option_of_an_import_is_documented() -> None:
    text = (ROOT / "docs/models.md").read_text()
    command = get_command(app).commands["bundle"].commands["import"]  # type: ignore[attr-defined]
    options = {name for one in command.params for name in one.opts if name.startswith("--")}
    assert len(options) > 15
    for name in options:
        assert f"{name}`" in text or f"{name} " in text, f"docs/models.md does not name {name}"
