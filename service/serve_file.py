"""The file that configures everything: Ray Serve's config file, with Winnow's `Settings` as args.

It is the file that `serve deploy` takes, so a laptop and a cluster share one schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from service.config import ConfigError, Settings, check_bind

IMPORT_PATH = "service.app:build"


@dataclass(frozen=True)
class ServeFile:
    """A checked file: Serve's part, and Winnow's."""

    serve: ServeDeploySchema
    settings: Settings

    @property
    def application(self) -> ServeApplicationSchema:
        """The one application that the file holds."""
        return self.serve.applications[0]


def read(path: Path) -> ServeFile:
    """Read and check a config file. Raises ConfigError with a line for each fault."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping with `applications`")
    try:
        serve = ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        raise ConfigError(_lines(error)) from None
    # Serve's own schema passes over keys that it does not know.
    if unknown := list(_unknown(document, serve)):
        raise ConfigError("\n".join(f"{key}: unknown key" for key in unknown))
    if len(serve.applications) != 1 or serve.applications[0].import_path != IMPORT_PATH:
        raise ConfigError(f"applications: must hold one entry with import_path {IMPORT_PATH}")
    for key in ("deployments", "runtime_env"):
        if document["applications"][0].get(key):
            raise ConfigError(
                f"applications.0.{key}: not used by Winnow: replicas and options stand in `args`"
            )
    try:
        settings = Settings.model_validate(serve.applications[0].args)
    except ValidationError as error:
        raise ConfigError(_lines(error, "applications.0.args.")) from None
    if not 1 <= serve.http_options.port <= 65535:
        raise ConfigError("http_options.port: must be 1 to 65535")
    check_bind(settings, serve.http_options.host)
    return ServeFile(serve, settings)


def _unknown(document: object, model: object, path: str = "") -> Iterator[str]:
    """The paths of keys in `document` that have no field in the model that was read from it."""
    if isinstance(model, BaseModel) and isinstance(document, dict):
        for key, value in document.items():
            if key not in type(model).model_fields:
                yield f"{path}{key}"
            else:
                yield from _unknown(value, getattr(model, key), f"{path}{key}.")
    elif isinstance(model, list) and isinstance(document, list):
        for index, (value, part) in enumerate(zip(document, model, strict=True)):
            yield from _unknown(value, part, f"{path}{index}.")


def _lines(error: ValidationError, prefix: str = "") -> str:
    """One `path: reason` a fault, in the words of the file."""
    return "\n".join(
        f"{(prefix + '.'.join(str(part) for part in fault['loc'])).rstrip('.')}: "
        + ("unknown key" if fault["type"] == "extra_forbidden" else fault["msg"])
        for fault in error.errors()
    )
