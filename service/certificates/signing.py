"""The Ed25519 key that signs evidence: from the environment, or a file made once."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from service.config import CertificateSettings, ConfigError, state_folder
from service.errors import StoreUnavailable

log = logging.getLogger("winnow.certificates")

RAW = 32
"""Bytes of an Ed25519 key, private or public."""


class Signer:
    """Signs, and tells its public key. Any thread may use it."""

    def __init__(self, settings: CertificateSettings, environment: Mapping[str, str]) -> None:
        """A key from the environment is read now: raises ConfigError when it is missing."""
        self._file = state_folder(environment) / "signing.key"
        self._lock = threading.Lock()
        self._key: Ed25519PrivateKey | None = None
        if settings.signing_key_env is not None:
            name = settings.signing_key_env
            try:
                raw = base64.b64decode(environment.get(name, ""), validate=True)
                if not any(raw):  # the example's
                    raise ValueError
                self._key = Ed25519PrivateKey.from_private_bytes(raw)
            except (binascii.Error, ValueError):
                raise ConfigError(
                    f"certificates.signing_key_env: environment variable {name} must hold "
                    f"{RAW} random bytes in base64 (`openssl rand -base64 {RAW}`)"
                ) from None

    @property
    def public_key(self) -> str:
        """The raw public key, in base64. Raises StoreUnavailable when the file cannot be used."""
        return to_text(self._private.public_key())

    @property
    def public_pem(self) -> bytes:
        """The public key as OpenSSL reads it. Raises as `public_key`."""
        public = self._private.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, data: bytes) -> bytes:
        """The signature, 64 bytes. Raises as `public_key`."""
        return self._private.sign(data)

    @property
    def _private(self) -> Ed25519PrivateKey:
        with self._lock:
            if self._key is None:
                try:
                    self._key = _from_file(self._file)
                except ConfigError as error:
                    log.error("evidence cannot be signed: %s", error)
                    raise StoreUnavailable(
                        "the key that signs evidence cannot be used; the log holds the cause"
                    ) from error
            return self._key


def read_public(data: bytes) -> Ed25519PublicKey:
    """A public key from PEM, or from its raw bytes in base64. Raises ValueError."""
    try:
        if b"-----BEGIN" in data:
            key = load_pem_public_key(data)
        else:
            raw = base64.b64decode(data.strip(), validate=True)
            key = Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is no Ed25519 public key, neither PEM nor base64") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("is a public key of another kind than Ed25519")
    return key


def to_text(key: Ed25519PublicKey) -> str:
    """A public key's raw bytes in base64."""
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def signed(key: Ed25519PublicKey, data: bytes, signature: bytes) -> bool:
    """Whether this key made this signature of these bytes."""
    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _from_file(path: Path) -> Ed25519PrivateKey:
    """The key in this file, which is made if it is missing; the first process wins."""
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            pem = Ed25519PrivateKey.generate().private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
            )
            handle, fresh = tempfile.mkstemp(dir=path.parent)  # mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(pem)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(fresh, path)
            except FileExistsError:
                pass  # another replica's key stands there now
            finally:
                Path(fresh).unlink()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path}: others may read this signing key: make it mode 0600")
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: evidence cannot be signed") from None
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is no Ed25519 key")
    return key
