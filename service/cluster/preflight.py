"""All that is checked before a start: `winnow config check` and `winnow serve` call this alone.

What passes here is built by Ray Serve. A fault that only shows once Ray runs (a replica that fails
while it loads) is the log's to tell.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.bundles import bundle as bundles
from models.bundles.bundle import ZOO, Bundle
from service.certificates.signing import Signer
from service.cluster import hardware
from service.config import ConfigError, Settings, StoreSettings, secrets, store_urls
from service.config.base import Faults
from service.config.serve_file import ARGS, ServeFile, read
from service.errors import StoreUnavailable
from service.policies.judge_trial import Tried, require_discriminating_judges
from service.policies.policy import Policy
from service.policies.registry import refuse_incompatible_policies
from service.policies.seeding import configured_policies
from service.store.blobs import Blobs
from service.store.database import Outdated
from service.store.store import Store

ADMIN_KEY = "WINNOW_ADMIN_KEY"
"""`winnow serve` makes a key of its own for this variable where there is none."""


@dataclass(frozen=True)
class CheckedFile:
    """A file that was checked; `unchecked` says what only the machines that serve it can tell."""

    file: ServeFile
    unchecked: tuple[str, ...] = ()


def check(
    config: Path,
    environment: Mapping[str, str],
    port: int | None = None,
    remote: bool = False,
    create: bool = False,
) -> CheckedFile:
    """Everything that can be said of a configuration file before Ray starts.

    `port` is to listen on, and not the file's. A file that is `remote`, for other machines,
    is not held against this one: its GPUs, its environment, its store. With `create` the store is
    made and brought up to date, as a start does; without, nothing is written.

    Raises ConfigError with a line `path: reason` for each fault.
    """
    file = read(config, port, deployed=remote)
    settings, http = file.settings, file.serve.http_options
    faults = Faults()
    unchecked: list[str] = []
    loaded = _bundles(settings, faults, remote, unchecked)
    seeds = _policies(settings, loaded, faults)
    faults.lines += [f"{ARGS}.{line}" for line in _refused_by_ray(settings)]
    if remote:
        unchecked.append("environment variables, the store, CPUs, GPUs and ports of its machines")
    else:
        faults.lines += [f"{ARGS}.{line}" for line in hardware.faults(settings)]
        # The start makes this key, if the variable is not there.
        known = {ADMIN_KEY: "made-by-winnow-serve-at-its-start", **environment}
        with faults.gather(f"{ARGS}."):
            secrets(settings.auth, known)
        with faults.gather(f"{ARGS}."):
            Signer(settings.certificates, known)
        with faults.gather():
            _refuse_taken_port(http.host, http.port)
        _check_store(settings.store, known, seeds, faults, create)
    if not faults.lines:
        _build(file)
    faults.refuse()
    return CheckedFile(file, tuple(unchecked))


def _bundles(
    settings: Settings, faults: Faults, remote: bool, unchecked: list[str]
) -> dict[str, Bundle]:
    loaded = {}
    for name, model in settings.models.items():
        path = f"{ARGS}.models.{name}.bundle"
        if remote and Path(model.bundle).is_absolute() and not Path(model.bundle).exists():
            unchecked.append(f"{path}: {model.bundle} is not here, nor are its policies checked")
            continue
        with faults.gather(f"{path}: "):
            folder = bundles.find(model.bundle)
            if not folder.is_absolute() and folder.resolve() != (ZOO / folder).resolve():
                raise ConfigError(
                    f"{model.bundle!r} is in this folder, where replicas do not run: give its "
                    "absolute path"
                )
            loaded[name] = bundles.load(model.bundle)
    return loaded


def _policies(
    settings: Settings, loaded: Mapping[str, Bundle], faults: Faults
) -> dict[str, Policy]:
    """The policies of the bundles that could be loaded, tied to their weights."""
    seeds: dict[str, Policy] = {}
    tried: Tried = {}
    for name, policy in settings.policies.items():
        if policy.model in loaded:
            alone = settings.model_copy(update={"policies": {name: policy}})
            try:
                pinned = configured_policies(alone, loaded)
                _refuse_undrawable(pinned[name], loaded[policy.model])
                require_discriminating_judges(pinned, loaded, tried)
                seeds |= pinned
            except ConfigError as error:
                faults.lines.append(f"{ARGS}.{error}")
            except ValueError as error:  # BundleError: the bundle lacks what the policy needs
                faults.lines.append(f"{ARGS}.policies.{name}: {error}")
    return seeds


def _refuse_undrawable(policy: Policy, bundle: Bundle) -> None:
    """Raises ConfigError for a sampler or spacing that the model's noise schedule has not."""
    if bundle.manifest.backbone.kind == "pipeline":
        return  # `configured_policies` takes neither
    methods = [policy.settings.method(n) for n in policy.settings.num_inference_steps]
    folder = bundle.folder / bundle.manifest.backbone.folder
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    plain = {"ddim", "dpmsolver++"}
    if "FlowMatch" not in scheduler.get("_class_name", "") and all(
        one.sampler in plain
        and not (one.timestep_spacing or one.sigma_spacing or one.timesteps or one.sigmas)
        for one in methods
    ):
        return  # what follows takes seconds to import
    from models.diffusion.noise_schedule import NoiseSchedule
    from models.sampling.program import compile_method

    schedule = NoiseSchedule.from_diffusers(scheduler).of_size(*bundle.x_t_shape[1:])
    for method in methods:
        try:
            compile_method(schedule, method)
        except ValueError as error:
            raise ConfigError(f"policies.{policy.name}: {error}") from None


def _refused_by_ray(settings: Settings) -> Iterator[str]:
    """What Ray's own check of actors' options says."""
    from ray._common.ray_option_utils import validate_actor_options

    for path, replicas in settings.deployments().items():
        try:
            validate_actor_options(replicas.ray_actor_options.as_ray(), in_options=True)
        except (TypeError, ValueError) as error:
            yield f"{path}.ray_actor_options: {error}"


def _build(file: ServeFile) -> None:
    """Build the application as Serve will. Raises ConfigError."""
    from service.app import build

    try:
        build(file.settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{ARGS}: Ray Serve refuses it: {error}") from None


def _check_store(
    settings: StoreSettings,
    environment: Mapping[str, str],
    seeds: Mapping[str, Policy],
    faults: Faults,
    create: bool,
) -> None:
    try:
        url, blobs_url = store_urls(settings, environment)
        blobs = Blobs(blobs_url)
        if faults.lines:
            return  # nothing is made for a start that does not come
        if blobs.folder is not None:
            _refuse_unwritable(blobs.folder, "store.blobs_url")
        if _is_to_be_made(url) and not create:
            return
        store = Store(url, blobs_url, create)
    except Outdated:
        return  # a start brings it up to date
    except ConfigError as error:
        faults.lines.append(f"{ARGS}.{error}")
        return
    try:
        with faults.gather(f"{ARGS}."):
            refuse_incompatible_policies(store, seeds)
            if create:
                _try_blobs(store.blobs)
    except StoreUnavailable as error:
        cause = getattr(error.__cause__, "orig", None) or error
        faults.lines.append(f"{ARGS}.store: the policies in force cannot be read: {cause}")
    finally:
        store.close()


def _is_to_be_made(url: str) -> bool:
    """Whether the store is an SQLite file that is not there yet.

    Raises ConfigError where it, or its folder, cannot be written.
    """
    from sqlalchemy import make_url

    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return False
    file = Path(parsed.database or "")
    if not os.path.exists(file):  # where it may not be looked at, it does not exist
        _refuse_unwritable(file.parent, "store.url")
        return True
    if not os.access(file, os.W_OK):
        raise ConfigError(
            f"store: {file}: cannot be written: give store.url a place that can be written"
        )
    return False


def _refuse_unwritable(folder: Path, key: str) -> None:
    """Raises ConfigError where no file can be made in a folder, or in what is there of its path.

    It is tried, as rights alone tell too little, with a file that has no name.
    """
    there = folder
    while not os.path.exists(there):
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"store: {there}: cannot be written ({error.strerror}): give {key} a place that can be "
            "written"
        ) from None


def _try_blobs(blobs: Blobs) -> None:
    """Raises ConfigError where none can be written and read."""
    try:
        blobs.probe()
    except Exception as error:  # a bucket's client has errors of its own
        cause = error.__cause__ or error
        why = getattr(cause, "strerror", None) or type(cause).__name__
        raise ConfigError(f"store.blobs_url: cannot be written and read: {why}") from error


def _refuse_taken_port(host: str, port: int) -> None:
    """Raises ConfigError where nothing can listen now."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"http_options.host: {host!r} is no address ({error.strerror})") from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen(1)
            except OSError as error:
                raise ConfigError(
                    f"http_options.port: port {port} on {host} cannot be used ({error.strerror}): "
                    "choose another with --port, or PORT= for make"
                ) from None
