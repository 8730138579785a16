"""What no schema says of an overlay: that its parts fit one another, and are locked down."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from service.cluster.preflight import check
from service.config import ActorOptions, ConfigError, Settings
from service.config.serve_file import ServeFile

Object = dict[str, Any]
WORKLOADS = ("StatefulSet", "Deployment", "DaemonSet", "Job")
REPLACEMENT_S = 180
"""What a drain must leave at least for replicas to start on another worker."""
DRAIN_S = 20
"""What the preStop hook itself may take to reach the head."""
PROXY_S = 60
"""How much longer than the longest request proxies wait (docs/operations/kubernetes.md)."""
IDLE_S = 600
"""What load balancers that cannot be told otherwise keep an idle connection."""


def faults(documents: list[Object]) -> Iterator[str]:
    """A line for each fault."""
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        for where, pod in _pods(document):
            yield from (f"{name}: {where}{line}" for line in _pod_faults(pod, _claims(document)))
    for document in documents:
        if document["kind"] == "RayService":
            name = f"RayService/{document['metadata']['name']}"
            yield from (f"{name}: {line}" for line in _service_faults(document, documents))


def _pods(document: Object) -> Iterator[tuple[str, Object]]:
    if document["kind"] in WORKLOADS:
        yield "", document["spec"]["template"]["spec"]
    elif document["kind"] == "RayService":
        cluster = document["spec"]["rayClusterConfig"]
        yield "head: ", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster.get("workerGroupSpecs", []):
            yield f"{group['groupName']}: ", group["template"]["spec"]


def _claims(document: Object) -> set[str]:
    """A StatefulSet's own volumes, which its pod template does not list."""
    claims = document["spec"].get("volumeClaimTemplates", [])
    return {claim["metadata"]["name"] for claim in claims}


def _pod_faults(pod: Object, claims: set[str]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot"):
        yield "securityContext.runAsNonRoot must be true"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext.seccompProfile.type must be RuntimeDefault"
    if pod.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false: mount a token where it is needed"
    for spread in pod.get("topologySpreadConstraints", []):
        if spread.get("nodeTaintsPolicy") != "Honor":
            yield (
                f"topologySpreadConstraints of {spread['topologyKey']}: nodeTaintsPolicy must be "
                "Honor: a tainted node would count as an empty one"
            )
    volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        name = container["name"]
        locked = container.get("securityContext", {})
        if locked.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: readOnlyRootFilesystem must be true"
        if locked.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation must be false"
        if locked.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{name}: capabilities.drop must be [ALL]"
        if not re.search(r"(:[^/:]+|@sha256:[0-9a-f]{64})$", container["image"]):
            yield f"{name}: image {container['image']} has no tag: set it under `images`"
        if not container.get("resources", {}).get("limits", {}).get("memory"):
            yield f"{name}: resources.limits.memory is missing"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{name}: mounts {mount['name']}, which is no volume of the pod"


def _service_faults(service: Object, documents: list[Object]) -> Iterator[str]:
    spec, cluster = service["spec"], service["spec"]["rayClusterConfig"]
    if cluster.get("rayVersion") != ray.__version__:
        yield f"rayVersion {cluster.get('rayVersion')} is not the tested one, {ray.__version__}"
    if spec.get("upgradeStrategy", {}).get("type") != "NewCluster":
        yield "upgradeStrategy.type must be NewCluster: others cut requests"
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'headGroupSpec.rayStartParams.num-cpus must be "0": replicas would start on the head'
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: without it whoever reaches Ray runs code"
    groups = cluster.get("workerGroupSpecs", [])
    for group in [cluster["headGroupSpec"], *groups]:
        first = group["template"]["spec"]["containers"][0]
        if "livenessProbe" in first or "readinessProbe" in first:
            yield f"{first['name']}: leave its probes to KubeRay"
    file = _serve_file(spec.get("serveConfigV2", ""))
    if isinstance(file, str):
        yield from (f"serveConfigV2: {line}" for line in file.splitlines())
        return
    settings = file.settings
    longest = settings.limits.max_deadline_s
    if spec.get("rayClusterDeletionDelaySeconds", 60) <= longest:
        yield f"rayClusterDeletionDelaySeconds must be above limits.max_deadline_s, {longest:.0f}"
    if file.serve.http_options.host in ("127.0.0.1", "localhost"):
        yield "serveConfigV2: http_options.host must be 0.0.0.0"
    idle = max(longest + PROXY_S, IDLE_S)
    if file.serve.http_options.keep_alive_timeout_s <= idle:
        yield (
            f"serveConfigV2: http_options.keep_alive_timeout_s must be above {idle:.0f}, for which "
            "proxies keep an idle connection"
        )
    yield from _drain_faults(settings, groups)
    yield from (f"serveConfigV2: {line}" for line in _store_faults(settings, groups))
    yield from _secret_faults(settings, groups, documents)
    yield from _resource_faults(settings, groups)
    yield from _crowding_faults(settings, groups)
    yield from _metrics_faults(settings, [cluster["headGroupSpec"], *groups])


def _serve_file(text: str) -> ServeFile | str:
    """The file, as `winnow config check --remote` has it; or what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "serve.yaml"
        path.write_text(text)
        try:
            return check(path, {}, remote=True).file
        except ConfigError as error:
            return str(error).replace(f"{path}: ", "")


def _drain_faults(settings: Settings, groups: list[Object]) -> Iterator[str]:
    """Pods that would go before their replicas are replaced and have ended what they hold."""
    longest = settings.limits.max_deadline_s
    slow = {"ingress": settings.ingress} | {
        f"models.{name}.backbone.replicas": model.backbone.replicas
        for name, model in settings.models.items()
    }
    for name, one in slow.items():
        if one.graceful_shutdown_timeout_s <= longest:
            yield (
                f"serveConfigV2: {name}.graceful_shutdown_timeout_s must be above "
                f"limits.max_deadline_s, {longest:.0f}"
            )
    needed = max(one.graceful_shutdown_timeout_s for one in slow.values()) + REPLACEMENT_S
    for group in groups:
        pod = group["template"]["spec"]
        hook = str(pod["containers"][0].get("lifecycle", {}).get("preStop"))
        found = re.search(r"ray drain-node .*--deadline-remaining-seconds (\d+)", hook)
        deadline = int(found[1]) if found else 0
        if deadline < needed:
            yield (
                f"{group['groupName']}: preStop must drain with --deadline-remaining-seconds of "
                f"{needed:.0f} or more: graceful_shutdown_timeout_s, and {REPLACEMENT_S} s to "
                "start replicas elsewhere"
            )
        if pod.get("terminationGracePeriodSeconds", 30) < deadline + DRAIN_S:
            yield (
                f"{group['groupName']}: terminationGracePeriodSeconds must be "
                f"{deadline + DRAIN_S} or more: preStop's deadline, and {DRAIN_S} s to begin"
            )


def _store_faults(settings: Settings, groups: list[Object]) -> Iterator[str]:
    store = settings.store
    if store.url_env is None:
        yield "store.url_env is missing: SQLite would be another store on every machine"
    blobs = store.blobs_url
    if blobs is None:
        yield "store.blobs_url is missing: every machine would have blobs of its own"
    elif "://" not in blobs:
        for group in groups:
            mounts = group["template"]["spec"]["containers"][0].get("volumeMounts", [])
            if not any(Path(blobs).is_relative_to(mount["mountPath"]) for mount in mounts):
                yield f"store.blobs_url {blobs} is on no volume of {group['groupName']}"


def _secret_faults(
    settings: Settings, groups: list[Object], documents: list[Object]
) -> Iterator[str]:
    """Variables that the file names and no Secret in sight holds."""
    held = {
        one["metadata"]["name"]: {*one.get("data", {}), *one.get("stringData", {})}
        for one in documents
        if one["kind"] == "Secret"
    }
    wanted = {key.secret_env for key in settings.auth.keys}
    wanted |= {settings.store.url_env, settings.certificates.signing_key_env} - {None}
    for group in groups:
        container = group["template"]["spec"]["containers"][0]
        given = {variable["name"] for variable in container.get("env", [])}
        for source in container.get("envFrom", []):
            name = source.get("secretRef", {}).get("name")
            if name not in held:
                break  # a Secret that is made elsewhere
            given |= held[name]
        else:
            for name in sorted(wanted - given):
                yield f"{container['name']}: no Secret holds {name}, which serve.yaml names"


def _resource_faults(settings: Settings, groups: list[Object]) -> Iterator[str]:
    """Replicas that no worker could ever hold."""
    for name, one in settings.deployments().items():
        wanted = _demand(one.ray_actor_options)
        if not wanted:
            yield f"serveConfigV2: {name} asks for nothing, so it may start on the head: num_cpus"
            continue
        room = sum(group["maxReplicas"] * _fit(_supply(group), wanted) for group in groups)
        if room < one.most:
            yield f"serveConfigV2: {name} may want {one.most} of {wanted}; the workers hold {room}"


def _crowding_faults(settings: Settings, groups: list[Object]) -> Iterator[str]:
    """Backbones that may fill every worker, and leave the judges nowhere to go."""
    others = [settings.ingress, *(model.judge.replicas for model in settings.models.values())]
    if settings.feedback.enabled:
        others.append(settings.feedback.replicas)
    for name, model in settings.models.items():
        backbone = _demand(model.backbone.replicas.ray_actor_options)
        for group in groups:
            left = _supply(group)
            many = _fit(left, backbone)
            for kind, much in backbone.items():
                left[kind] = left.get(kind, 0) - many * much
            for other in others:
                for kind, much in _demand(other.ray_actor_options).items():
                    left[kind] = left.get(kind, 0) - much
            if min(left.values()) < -1e-9:
                yield (
                    f"serveConfigV2: {many} backbones of {name} fill a worker of "
                    f"{group['groupName']}: no room for a judge and an ingress beside them"
                )


def _fit(supply: dict[str, float], wanted: dict[str, float]) -> int:
    """How many of these one worker holds, with nothing else on it."""
    return int(min(supply.get(name, 0) // much for name, much in wanted.items() if much))


def _demand(options: ActorOptions) -> dict[str, float]:
    """What a replica takes of what manifests name; memory and kinds of GPU they name otherwise."""
    named = ("CPU", "GPU", *options.resources)
    return {name: much for name, much in options.demand().items() if name in named}


def _supply(group: Object) -> dict[str, float]:
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    own = {name: float(value) for name, value in group.get("resources", {}).items()}
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))} | own


def _metrics_faults(settings: Settings, groups: list[Object]) -> Iterator[str]:
    """Exporters that look elsewhere than the replicas listen."""
    if settings.metrics_ports is None:
        yield "serveConfigV2: metrics_ports is missing: the exporters would find nothing"
        return
    ports = "-".join(str(port) for port in settings.metrics_ports)
    for group in groups:
        pod = group["template"]["spec"]
        exporters = [one for one in pod.get("initContainers", []) if one["name"] == "exporter"]
        if not exporters or ports not in exporters[0]["command"]:
            yield f"{pod['containers'][0]['name']}: has no exporter of ports {ports}"
