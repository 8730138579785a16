"""Evidence checked offline: every hash, every number, and the signature, made anew."""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from models.bundles.sampling_key import canonical
from service.certificates.certificate import (
    Result,
    Terms,
    fingerprint,
    judge,
    statement,
    terms,
)
from service.certificates.evidence import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    PUBLIC_KEY,
    SIGNATURE,
    path,
)
from service.certificates.signing import read_public, signed, to_text
from service.errors import InvalidValue
from service.store.blobs import name_of

MAX_BYTES = 64 * 1024 * 1024
"""Of one file inside; what unpacks to more is refused, whatever it says of itself."""

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Fault(ValueError):
    """The evidence does not hold; the message says where."""


def verify(file: Path, public_key: Ed25519PublicKey | None) -> Iterator[str]:
    """Check a file; yields a sentence for each thing that holds, and raises Fault at the first
    that does not. The last sentence is the statement, if the certificate passed.

    Without `public_key` the signature is checked with the key that lies in the file, which proves
    that nothing was changed since, and not by whom it was signed. Raises OSError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            yield from _verify(archive, public_key)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise Fault(f"the file is no whole zip file: {error}") from None
    except (KeyError, TypeError, AttributeError, InvalidValue) as error:
        # It was signed like this: a format that we do not know, or a liar's.
        raise Fault(f"{MANIFEST} does not hold what a certificate must: {error}") from None


def _verify(archive: zipfile.ZipFile, public_key: Ed25519PublicKey | None) -> Iterator[str]:
    names = archive.namelist()
    if len(set(names)) < len(names):
        raise Fault("a name occurs twice in the file")
    claimed = _read(archive, MANIFEST)
    yield _signature(archive, claimed, public_key)
    document = _parse(claimed)
    certificate = document["certificate"]
    fixed = certificate["terms"]
    if fingerprint(fixed["covered"]) != certificate["fingerprint"]:
        raise Fault("the fingerprint is not that of what the certificate says it covers")
    yield f"The fingerprint {certificate['fingerprint']} is that of all that is covered."
    agreed = _terms(certificate)
    yield (
        f"{agreed.n} labels is the fewest with which {agreed.allowed} malign ones prove a rate of "
        f"at most {agreed.epsilon:g} in attempt {agreed.attempt}, which spends "
        f"{agreed.delta_attempt:g} of delta {agreed.delta:g}."
    )
    images = document["images"]
    yield _images(archive, names, images, agreed)
    labels = _labels(document, [image["id"] for image in images])
    people = sorted({one["annotator"] for one in document["labels"]})
    yield f"Each image has a label that counts, given in time by {', '.join(people)}."
    result = judge(labels, agreed)
    assert result is not None, "no label is missing"
    yield _result(certificate, result)
    yield _attempts(document["attempts"], certificate)
    if not result.passed:
        raise Fault(
            f"the evidence is sound, but the certificate FAILED: {result.k} of {result.n} were "
            f"malign or unsure, and {agreed.allowed} were allowed"
        )
    yield f"{statement(certificate['policy'], agreed, fixed['covered'])}. Not covered:"
    yield from (f"- {sentence}" for sentence in document["not_covered"])


def _signature(
    archive: zipfile.ZipFile, claimed: bytes, public_key: Ed25519PublicKey | None
) -> str:
    try:
        inside = read_public(_read(archive, PUBLIC_KEY))
    except ValueError as error:
        raise error if isinstance(error, Fault) else Fault(f"{PUBLIC_KEY} {error}") from None
    if public_key is not None and to_text(public_key) != to_text(inside):
        raise Fault(f"it was signed by key {to_text(inside)}, not by the one that you trust")
    if not signed(inside, claimed, _read(archive, SIGNATURE)):
        raise Fault(f"{SIGNATURE} is no signature of {MANIFEST} by {PUBLIC_KEY}")
    if public_key is None:
        return (
            f"The signature is that of key {to_text(inside)}, which lies in the file: nothing was "
            "changed since, but compare the key with the service's (--public-key)."
        )
    return f"The signature is that of the key that you trust, {to_text(inside)}."


def _parse(claimed: bytes) -> dict[str, Any]:
    try:
        document = json.loads(claimed)
        # One spelling only: a key that stands twice could be read in two ways.
        if canonical(document) != claimed:
            raise Fault(f"{MANIFEST} is not in canonical form")
    except ValueError as error:
        raise error if isinstance(error, Fault) else Fault(f"{MANIFEST} is not JSON") from None
    if document["format"] != FORMAT or document["format_version"] != FORMAT_VERSION:
        raise Fault(
            f"{MANIFEST} has format {document['format']} {document['format_version']}, this "
            f"Winnow reads {FORMAT} {FORMAT_VERSION}"
        )
    found: dict[str, Any] = document
    return found


def _terms(certificate: dict[str, Any]) -> Terms:
    """The terms, computed anew from what was asked for."""
    fixed = certificate["terms"]
    agreed = terms(fixed["epsilon"], fixed["delta"], fixed["attempt"], fixed["allowed"])
    for name, value in asdict(agreed).items():
        if not math.isclose(value, fixed[name], rel_tol=1e-9):
            raise Fault(f"terms.{name} is {fixed[name]}, and must be {value}")
    for name in ("epsilon", "delta", "attempt"):
        if certificate[name] != fixed[name]:
            raise Fault(f"{name} is {certificate[name]} here and {fixed[name]} in the terms")
    return agreed


def _images(
    archive: zipfile.ZipFile, names: Sequence[str], images: Sequence[dict[str, Any]], agreed: Terms
) -> str:
    if len(images) != agreed.n:
        raise Fault(f"there are {len(images)} images, and must be {agreed.n}")
    for field in ("id", "seed", "position"):
        if len({image[field] for image in images}) < len(images):
            raise Fault(f"two images have the same {field}")
    expected = {MANIFEST, SIGNATURE, PUBLIC_KEY}
    for image in images:
        if not IMAGE_ID.fullmatch(image["id"]):
            raise Fault(f"{image['id']!r} is no id of an image")
        expected.add(path(image["id"]))
        if name_of(_read(archive, path(image["id"]))) != image["sha256"]:
            raise Fault(f"{path(image['id'])} was changed: it is not {image['sha256']}")
    if unknown := sorted(set(names) - expected):
        raise Fault(f"{unknown[0]} is in the file and not in {MANIFEST}")
    return f"All {len(images)} images are those of the manifest, each with a seed of its own."


def _labels(document: dict[str, Any], images: Sequence[str]) -> list[str]:
    """The label that counts of each image: the last one."""
    certificate = document["certificate"]
    begun = datetime.fromisoformat(certificate["created"])
    finished = datetime.fromisoformat(certificate["finished"])
    known = set(images)
    last: dict[str, str] = {}
    for one in document["labels"]:
        if one["image"] not in known:
            raise Fault(f"there is a label of {one['image']}, which is not among the images")
        if not begun <= datetime.fromisoformat(one["created"]) <= finished:
            raise Fault(f"a label of {one['image']} is not from between begin and end")
        last[one["image"]] = one["label"]
    for image in images:
        if last.get(image) not in ("benign", "malign", "unsure"):
            raise Fault(f"image {image} has no label that counts")
    return [last[image] for image in images]


def _result(certificate: dict[str, Any], result: Result) -> str:
    given = certificate["result"]
    for name, value in asdict(result).items():
        same = math.isclose(given[name], value, rel_tol=1e-9)
        if not same:
            raise Fault(f"result.{name} is {given[name]}, and the labels say {value}")
    if (certificate["status"] == "passed") != result.passed:
        raise Fault(f"it is called {certificate['status']}, and the labels say otherwise")
    return (
        f"{result.k} of {result.n} images were called malign or unsure, which bounds the rate by "
        f"{result.bound:.4%}."
    )


def _attempts(attempts: Sequence[dict[str, Any]], certificate: dict[str, Any]) -> str:
    """No attempt is missing before this one, so that it spent no more than its share of delta."""
    mine = [number for number, one in enumerate(attempts) if one["id"] == certificate["id"]]
    if len(mine) != 1:
        raise Fault("the certificate is not among the attempts of its policy")
    here = attempts[mine[0]]
    if any(certificate[name] != value for name, value in here.items()):
        raise Fault("the list of attempts tells otherwise of this one")
    earlier = attempts[: mine[0]]
    should = 1 + max((one["attempt"] for one in earlier), default=0)
    if certificate["attempt"] != should:
        raise Fault(
            f"it is attempt {certificate['attempt']}, and by the attempts before it should be "
            f"{should}: one is missing"
        )
    numbers = [one["attempt"] for one in attempts if one["policy"] == certificate["policy"]]
    if numbers != sorted(set(numbers)):
        raise Fault("the numbers of the attempts do not rise")
    summary = ", ".join(f"{one['attempt']} {one['status']}" for one in attempts)
    return f"The attempts of this policy were: {summary}."


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file inside, never more of it than MAX_BYTES, and never onto the disk."""
    try:
        with archive.open(name) as file:
            data = file.read(MAX_BYTES + 1)
    except KeyError:
        raise Fault(f"{name} is missing from the file") from None
    if len(data) > MAX_BYTES:
        raise Fault(f"{name} is larger than {MAX_BYTES} bytes")
    return data
