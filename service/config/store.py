"""The store: where decisions, labels and weights are kept, and for how long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from service.config.base import ConfigError, Part, Variable, refuse_control

BACKENDS = ("sqlite", "postgresql")
FILESYSTEMS = frozenset((
    "abfs", "abfss", "adl", "az", "file", "ftp", "gcs", "gs", "hdfs", "local", "oci", "oss", "s3",
    "s3a", "sftp", "smb", "ssh", "tos", "webhdfs",
))  # fmt: skip
"""fsspec's protocols that several processes can write to."""


def check_database_url(url: str) -> str:
    """The URL. Raises ValueError, which never repeats it, where no store can be at it."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    refuse_control(url)
    try:
        parsed = make_url(url)
        backend, dialect = parsed.get_backend_name(), parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError):
        raise ValueError("the URL is not one that SQLAlchemy reads") from None
    if backend not in BACKENDS:
        raise ValueError(f"the URL must begin with {' or '.join(BACKENDS)}, not {backend}")
    if dialect.is_async or (backend == "sqlite" and dialect.driver != "pysqlite"):
        raise ValueError(
            f"the URL names the driver {dialect.driver}, which the store does not use: begin it "
            f"with {'sqlite://' if backend == 'sqlite' else 'postgresql+psycopg://'}"
        )
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise ValueError("the URL's port must be 1 to 65535")
    if backend == "sqlite" and not Path(parsed.database or "").is_absolute():
        raise ValueError(
            "SQLite needs an absolute path (sqlite:////folder/file.sqlite): replicas do not run "
            "in your folder"
        )
    if backend == "sqlite" and parsed.query:
        raise ValueError(
            f"the URL must end before its ?: {', '.join(sorted(parsed.query))} would be passed over"
        )
    return url


def check_blobs_url(url: str) -> str:
    """The URL. Raises ValueError where several processes cannot keep blobs at it."""
    refuse_control(url)
    protocol, found, rest = url.rpartition("://")
    if not found:
        protocol, rest = "file", url
    if protocol not in FILESYSTEMS:
        raise ValueError(
            f"{protocol!r} is no protocol that blobs can be kept by: a folder's absolute path, or "
            f"one of {', '.join(sorted(FILESYSTEMS))}"
        )
    if protocol in ("file", "local"):
        if not Path(rest).is_absolute():
            raise ValueError("must be absolute: replicas do not run in your folder")
    elif not rest.strip("/"):
        raise ValueError(f"{protocol}:// must name a bucket or a host, and a folder in it")
    return url


class StoreSettings(Part):
    """Where decisions, labels, rewards and policies are kept, and for how long.

    `url` is SQLAlchemy's; one with a password stands in the environment variable `url_env`.
    `blobs_url` is fsspec's. `keep_days` is for decisions, `keep_images_days` for images that were
    shown for labelling; labels stay.
    """

    url: Annotated[str, AfterValidator(check_database_url)] | None = None
    url_env: Variable | None = None
    blobs_url: Annotated[str, AfterValidator(check_blobs_url)] | None = None
    keep_days: int = Field(30, ge=1, le=36_500)
    keep_images_days: int = Field(365, ge=1, le=36_500)
    keep_prompts: bool = False

    @model_validator(mode="after")
    def _one_place_and_no_secret(self) -> StoreSettings:
        if self.url is not None and self.url_env is not None:
            raise ValueError("url: stands beside url_env: give one of them")
        if self.url is not None and re.search(r"://[^:/]*:[^@]*@|[?&]\w*password=", self.url):
            raise ValueError("url: must hold no password: put the URL into url_env's variable")
        if self.blobs_url is not None and re.search(r"://[^:/]*:[^@]*@", self.blobs_url):
            raise ValueError(
                "blobs_url: must hold no password: fsspec reads its own environment variables"
            )
        return self


def store_urls(store: StoreSettings, environment: Mapping[str, str]) -> tuple[str, str]:
    """The URLs of the store's database and its blobs.

    The defaults lie in the user's state folder: replicas do not share a working folder, and what is
    kept must outlive a clone and its build. Raises ConfigError for a variable that is missing or
    holds no such URL.
    """
    if store.url_env is None:
        url = store.url or f"sqlite:///{state_folder(environment)}/decisions.sqlite"
        return url, blobs_url(store, environment)
    url = environment.get(store.url_env, "")
    named = f"store.url_env: environment variable {store.url_env}"
    if not url:
        raise ConfigError(f"{named} must hold a URL")
    try:
        check_database_url(url)
    except ValueError as error:
        raise ConfigError(f"{named}: {error}") from None
    return url, blobs_url(store, environment)


def blobs_url(store: StoreSettings, environment: Mapping[str, str]) -> str:
    """The URL of the store's blobs alone: backbones and judges need no database.

    Raises ConfigError as `state_folder` does.
    """
    return store.blobs_url or str(state_folder(environment) / "blobs")


def state_folder(environment: Mapping[str, str]) -> Path:
    """The folder of this user's store.

    Raises ConfigError for a relative one, which is another folder in each process.
    """
    given = environment.get("XDG_STATE_HOME")
    try:
        folder = Path(given or "~/.local/state").expanduser()
    except RuntimeError:
        raise ConfigError(
            "store.url: this user has no home folder: give it, and blobs_url, or set XDG_STATE_HOME"
        ) from None
    if not folder.is_absolute():
        raise ConfigError(f"store.url: XDG_STATE_HOME must be an absolute path, not {given!r}")
    return folder / "winnow"
