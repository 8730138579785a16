"""Custom resources against their CRD's schema, as strictly as `kubectl apply --validate=strict`.

The API server drops a key that a CRD does not know; here it is a fault. Rules in CEL are not
evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml

OPEN = "x-kubernetes-preserve-unknown-fields"


def load(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The strict schema of each (apiVersion, kind) that the folder's CRDs define."""
    schemas: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.y*ml")):
        # The C loader: these files are megabytes.
        for crd in yaml.load_all(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if not isinstance(crd, dict) or crd.get("kind") != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                # The API server itself knows these three, whatever the schema says of them.
                root = {"apiVersion": {}, "kind": {}, "metadata": {}}
                strict = _strict(schema | {"properties": schema.get("properties", {}) | root})
                strict["properties"]["metadata"] = {"type": "object"}
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                schemas[key] = strict
    return schemas


def faults(document: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """A line `path: reason` for each fault."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return sorted(
        f"{'.'.join(str(part) for part in error.absolute_path) or '.'}: {_shorter(error.message)}"
        for error in found
    )


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema, with every object closed that does not ask to be open."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: _strict(part) for name, part in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        strict["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = _strict(schema["additionalProperties"])
    elif (
        schema.get("type") == "object"
        and "additionalProperties" not in schema
        and not schema.get(OPEN)
        and not schema.get("x-kubernetes-embedded-resource")
    ):
        strict["additionalProperties"] = False
    if schema.get("nullable"):
        return {"anyOf": [{"type": "null"}, strict]}
    return strict


def _shorter(message: str) -> str:
    return message if len(message) < 300 else f"{message[:140]} … {message[-140:]}"
