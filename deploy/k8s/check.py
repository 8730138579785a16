"""Builds every overlay and example as `kubectl apply -k` would, and looks for what is wrong in it.

`python -m deploy.k8s.check` prints a line for each fault, and exits with 1 if there is one. Core
kinds are validated by kubernetes-validate, custom kinds strictly against their CRDs, serve.yaml as
`winnow config check --remote` does; the rest is what no schema says: that the parts fit one
another. What is left out for want of kubectl or of the CRDs is said loudly.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.k8s import consistency, crds

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KUBERNETES = "1.30"
"""The oldest that docs/operations/kubernetes.md promises; the newest is tried as well."""
CUSTOM = ("ray.io", "monitoring.coreos.com")


def main() -> int:
    """Check everything; returns the exit code."""
    found: list[str] = []
    if shutil.which("kubectl") is None:
        _skip("the overlays: kubectl was not found (it brings kustomize; no cluster is needed)")
        return _report(found)
    folder = crd_folder()
    schemas = crds.load(folder) if folder.is_dir() else {}
    if not schemas:
        _skip(
            f"custom kinds (RayService, PodMonitor, …): no CRDs in {folder}. Fetch them as "
            "docs/operations/kubernetes.md says, and name their folder in WINNOW_CRDS"
        )
    for overlay in overlays():
        name = overlay.relative_to(HERE)
        try:
            documents = build(overlay)
        except BuildError as error:
            found.append(f"{name}: {error}")
            continue
        found += [f"{name}: {fault}" for fault in faults(documents, schemas)]
        sys.stdout.write(f"{name}: {len(documents)} objects\n")
    return _report(found)


class BuildError(Exception):
    """kubectl's kustomize refused."""


def crd_folder() -> Path:
    """Where the CRDs lie."""
    return Path(os.environ.get("WINNOW_CRDS") or ROOT.parent / "shared/crds")


def overlays() -> list[Path]:
    """Every folder that somebody may apply."""
    found = [
        *HERE.glob("overlays/*/kustomization.yaml"),
        *HERE.glob("examples/*/kustomization.yaml"),
    ]
    return sorted(path.parent for path in found)


def build(overlay: Path) -> list[dict[str, Any]]:
    """The objects of an overlay, with the example's Secrets. Raises BuildError."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy: whoever has real Secrets here should see none of them in an error.
        copy = Path(folder) / "deploy"
        shutil.copytree(ROOT / "deploy", copy, ignore=shutil.ignore_patterns("*.env"))
        for example in copy.rglob("*.env.example"):
            example.rename(example.with_suffix(""))
        built = subprocess.run(
            ["kubectl", "kustomize", str(copy / overlay.relative_to(ROOT / "deploy"))],
            capture_output=True,
            text=True,
            check=False,
        )
    if built.returncode:
        raise BuildError(built.stderr.strip().replace(folder, ""))
    return [document for document in yaml.safe_load_all(built.stdout) if document]


def faults(
    documents: list[dict[str, Any]], schemas: dict[tuple[str, str], dict[str, Any]]
) -> Iterator[str]:
    """What is wrong with an overlay's objects, a line each."""
    for document in documents:
        yield from schema_faults(document, schemas)
    yield from consistency.faults(documents)


def schema_faults(
    document: dict[str, Any], schemas: dict[tuple[str, str], dict[str, Any]]
) -> Iterator[str]:
    """What an object's own schema says of it, a line each."""
    name = f"{document['kind']}/{document['metadata']['name']}"
    schema = schemas.get((document["apiVersion"], document["kind"]))
    if schema is not None:
        lines = crds.faults(document, schema)
    elif document["apiVersion"].partition("/")[0] in CUSTOM:
        lines = [f"no CRD of {document['apiVersion']} {document['kind']}"] if schemas else []
    else:
        lines = core_faults(document)
    yield from (f"{name}: {line}" for line in lines)


def core_faults(document: dict[str, Any]) -> list[str]:
    import kubernetes_validate

    for version in (KUBERNETES, kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            path = ".".join(str(part) for part in error.absolute_path)
            return [f"{path or '.'}: {error.message} (Kubernetes {version})"]
        except kubernetes_validate.SchemaNotFoundError as error:
            return [error.message]
    return []


def _skip(what: str) -> None:
    sys.stderr.write(f"\n*** NOT CHECKED: {what} ***\n\n")


def _report(found: list[str]) -> int:
    for fault in found:
        sys.stderr.write(f"{fault}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
