"""A certificate's evidence: one signed file that anybody can check without this service.

A zip of `manifest.json` (all that is claimed, in canonical JSON), `manifest.sig` (its Ed25519
signature), `public_key.pem`, and `images/<id>.png`, which the manifest names by hash. `write` makes
it; `service.certificates.verification` checks it.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import asdict
from typing import IO, Any

from models.bundles.sampling_key import canonical
from service.certificates.certificate import NOT_COVERED
from service.certificates.signing import Signer
from service.errors import BlobUnreadable, Conflict
from service.store.certificates import Certificate
from service.store.schema import EPOCH
from service.store.store import Store

FORMAT = "winnow-certificate"
FORMAT_VERSION = 1
MANIFEST, SIGNATURE, PUBLIC_KEY = "manifest.json", "manifest.sig", "public_key.pem"
DATED = (1980, 1, 1, 0, 0, 0)
"""The same evidence is the same file, whenever it is written."""


def temporary(store: Store, certificate: Certificate, signer: Signer) -> str:
    """Write the evidence of a finished attempt to a file that the caller deletes; returns its path.

    On disk, as it may be large; whoever downloads it slowly costs no memory. Raises as `write`.
    """
    handle, name = tempfile.mkstemp(suffix=".zip")
    try:
        with os.fdopen(handle, "wb") as file:
            write(store, certificate, signer, file)
    except BaseException:
        os.unlink(name)
        raise
    return name


def write(store: Store, certificate: Certificate, signer: Signer, into: IO[bytes]) -> None:
    """Write the evidence of a finished attempt.

    Raises Conflict when it has no result, or when an image or an attempt cannot be read.
    """
    if certificate.status not in ("passed", "failed"):
        raise Conflict(f"certificate {certificate.id!r} is {certificate.status}: no evidence yet")
    claimed = canonical(manifest(store, certificate))
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (
            (MANIFEST, claimed),
            (SIGNATURE, signer.sign(claimed)),
            (PUBLIC_KEY, signer.public_pem),
        ):
            file.writestr(zipfile.ZipInfo(name, DATED), data)
        for image in store.certificates.images(certificate.id):
            try:
                png = store.blobs.get(image.blob)
            except BlobUnreadable as error:
                # Evidence of the others would be evidence of another certificate.
                raise Conflict(
                    f"there is no evidence without image {image.id!r}: {error}"
                ) from None
            # A PNG is compressed already.
            file.writestr(zipfile.ZipInfo(path(image.id), DATED), png)


def manifest(store: Store, certificate: Certificate) -> dict[str, Any]:
    """All that is claimed, as JSON."""
    related = store.certificates.all(certificate.policy, certificate.fingerprint)
    if damaged := next((one.id for one in related if not one.readable), None):
        raise Conflict(
            f"attempt {damaged!r} cannot be read, and evidence must tell of every attempt"
        )
    said = store.certificate_labels.said(certificate.id)
    times = [moment for one in related for moment in (one.created, one.finished)]
    if EPOCH in times + [one.created for one in said]:
        raise Conflict(
            "a time of its attempts or labels is damaged: nothing is signed with another"
        )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "certificate": _attempt(certificate)
        | {
            "policy_version": certificate.policy_version,
            "terms": dict(certificate.terms),
            "result": dict(certificate.result),
            "created_by": certificate.created_by,
        },
        "not_covered": list(NOT_COVERED),
        "images": [
            {
                "id": image.id,
                "position": image.position,
                "seed": image.seed,
                "draw": image.draw,
                "sha256": image.blob,
            }
            | ({} if image.input is None else {"input": image.input})
            for image in store.certificates.images(certificate.id)
        ],
        "labels": [asdict(one) | {"created": one.created.isoformat()} for one in said],
        "attempts": [_attempt(one) for one in reversed(related)],
    }


def path(image_id: str) -> str:
    """Where an image lies in the file."""
    return f"images/{image_id}.png"


def _attempt(one: Certificate) -> dict[str, Any]:
    return {
        "id": one.id,
        "policy": one.policy,
        "fingerprint": one.fingerprint,
        "attempt": one.attempt,
        "status": one.status,
        "epsilon": one.terms["epsilon"],
        "delta": one.terms["delta"],
        "created": one.created.isoformat(),
        "finished": one.finished.isoformat() if one.finished else None,
    }
