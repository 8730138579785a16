"""The file that configures everything: Ray Serve's config file, with Winnow's `Settings` as args.

It is the file that `serve deploy` takes, so a laptop and a cluster share one schema: the part of
Serve's that means something here, read as strictly as Winnow's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from ray.serve.schema import (
    HTTPOptionsSchema,
    LoggingConfig,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from service.config import NAME, NAME_IN_WORDS, ConfigError, Part, Port, Settings, check_bind
from service.config.base import Faults
from service.config.yaml_document import read_document

IMPORT_PATH = "service.app:build"
DISABLED = "Disabled: the service listens itself, on the port that Serve's proxies would take"
ARGS = "applications.0.args"
"""Where Winnow's settings stand in the file."""

INSTEAD = {
    "http_options.request_timeout_s": "limits.max_deadline_s bounds a request",
    "http_options.root_path": "let the proxy in front take the prefix away",
    "target_capacity": "set num_replicas",
    "controller_options": "set environment variables where Ray starts",
    "applications.0.deployments": "replicas and options stand in `args`",
    "applications.0.runtime_env": "code and packages belong into the image",
    "applications.0.logging_config": "it stands at the top of the file",
    "applications.0.host": "it stands in `http_options`",
    "applications.0.port": "it stands in `http_options`",
    "applications.0.autoscaling_policy": "models.<name>.backbone.replicas.autoscaling in `args`",
}
"""What to do instead, for keys that Serve knows and Winnow does not use."""


def _absolute(folder: str) -> str:
    if not Path(folder).is_absolute():
        raise ValueError("must be an absolute path: each process has a working folder of its own")
    return folder


class HttpOptions(Part):
    """Where the service listens; the names are Serve's."""

    host: str = Field("0.0.0.0", pattern=r"^[A-Za-z0-9_.:%-]{1,253}$")
    port: Port = 8000
    keep_alive_timeout_s: int = Field(65, ge=1, le=86_400)


class Logging(Part):
    """Serve's logs of its own processes; the names are Serve's."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    logs_dir: Annotated[str, AfterValidator(_absolute)] | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = Field([])


class Application(Part):
    """The one application of a file. Its route is the root: the service listens itself."""

    name: str = Field("winnow", pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    route_prefix: Literal["/"] = "/"
    import_path: Literal["service.app:build"]
    args: Settings


class Document(Part):
    """What stands in a file."""

    proxy_location: Literal["Disabled"] = "Disabled"
    http_options: HttpOptions = HttpOptions()
    logging_config: Logging | None = None
    applications: list[Application] = Field(min_length=1, max_length=1)


@dataclass(frozen=True)
class ServeFile:
    """A checked file: Serve's part, and Winnow's."""

    serve: ServeDeploySchema
    settings: Settings

    @property
    def application(self) -> ServeApplicationSchema:
        """The one application that the file holds."""
        return self.serve.applications[0]


def read(path: Path, port: int | None = None, deployed: bool = False) -> ServeFile:
    """Read and check a config file; `port` is to listen on, and not the file's.

    A file that says nothing of `proxy_location` means Disabled, unless it is to be `deployed` by
    Ray, which would start proxies. Raises ConfigError with a line for each fault.
    """
    given = read_document(path)
    try:
        document = Document.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error))) from None
    [application] = document.applications
    http = document.http_options.model_dump()
    if port is not None:
        http["port"] = port
    faults = Faults()
    if deployed and "proxy_location" not in document.model_fields_set:
        faults.lines.append(f"proxy_location: must be there: {DISABLED}")
    with faults.gather(f"{ARGS}."):
        check_bind(application.args, document.http_options.host)
    with faults.gather(f"{ARGS}."):
        _refuse_shared_port(application.args, http["port"])
    faults.refuse()
    logging = document.logging_config
    said = {
        "proxy_location": document.proxy_location,
        "http_options": http,
        "logging_config": logging and logging.model_dump(exclude_unset=True),
        "applications": [
            application.model_dump(exclude={"args"}) | {"args": given["applications"][0]["args"]}
        ],
    }
    try:
        # Serve's schema has the last word on its own part.
        return ServeFile(ServeDeploySchema.model_validate(said), application.args)
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error))) from None


def _refuse_shared_port(settings: Settings, port: int) -> None:
    if settings.metrics_ports is not None:
        first, last = settings.metrics_ports
        if first <= port <= last:
            raise ConfigError(
                f"metrics_ports: {first} to {last} hold http_options.port, {port}: a replica's "
                "metrics would take it"
            )


def _lines(error: ValidationError) -> Iterator[str]:
    """One `path: reason` a fault, in the words of the file."""
    for fault in error.errors():
        path = ".".join(
            str(part) if str(part).isprintable() else repr(part) for part in fault["loc"]
        )
        for reason in _reason(path, dict(fault)).split("\n"):
            # A validator of several fields names one of them itself.
            inner = (
                re.match(r"([a-z][\w.-]*): ", reason) if fault["type"] == "value_error" else None
            )
            yield f"{path}{'.' if inner else ': '}{reason}"


def _reason(path: str, fault: dict[str, Any]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(path)
    if path == "proxy_location":
        return f"must be {DISABLED}"
    if path == "applications.0.import_path":
        return f"must be {IMPORT_PATH}"
    if path == "applications.0.route_prefix":
        return "must be /: the service listens itself, without Serve's routes"
    if path == "applications" and kind in ("missing", "too_short", "too_long"):
        return f"must hold one entry, with import_path {IMPORT_PATH}"
    if kind == "string_pattern_mismatch" and context.get("pattern") == NAME:
        return f"must be {NAME_IN_WORDS}"
    said = str(fault["msg"])
    return said.removeprefix("Value error, ")


def _unknown(path: str) -> str:
    """What to say of a key that has no field here."""
    parent, _, key = path.rpartition(".")
    serves: dict[str, type[BaseModel]] = {
        "": ServeDeploySchema,
        "http_options": HTTPOptionsSchema,
        "logging_config": LoggingConfig,
        "applications.0": ServeApplicationSchema,
    }
    if parent not in serves or key not in serves[parent].model_fields:
        return "unknown key"
    tls = "TLS ends at the proxy in front" if key.startswith("ssl_") else None
    instead = INSTEAD.get(path, tls)
    said = "Serve's, and not used by Winnow: leave it out"
    return said if instead is None else f"{said} ({instead})"
