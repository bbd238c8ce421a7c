"""The key that signs what brokers are told: Ed25519 (RFC 8032), made on first use, kept in a folder as PEM."""

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.errors import BadData, Transient

PRIVATE_FILE = "notices.key.pem"
"""PKCS #8, without a password, for its owner's eyes only."""

PUBLIC_FILE = "notices.pub.pem"
"""SubjectPublicKeyInfo, to be given to whoever wants to check a signature."""

_KEY_ID_DIGITS = 16


class SigningKey:
    """Signs bytes. The same bytes always get the same signature."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def in_folder(cls, folder: Path) -> "SigningKey":
        """The key of a folder, made if there is none; processes that ask at the same time get the same one.

        Raises BadData, naming the file, if it is no Ed25519 key or others may read it; Transient if the folder
        cannot be written.
        """
        path = folder / PRIVATE_FILE
        try:
            if not path.exists():
                _put_new(path, _private_pem(Ed25519PrivateKey.generate()))
            key = cls(_read(path))
            _publish(folder / PUBLIC_FILE, key.public_pem.encode())
        except OSError as error:
            raise Transient(f"{path}: the key cannot be kept: {error.strerror}") from error
        return key

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self._private.sign(data)

    @cached_property
    def public_pem(self) -> str:
        """The public key."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self._private.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    @cached_property
    def key_id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the public key's 32 bytes."""
        return hashlib.sha256(self._private.public_key().public_bytes_raw()).hexdigest()[:_KEY_ID_DIGITS]


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


def _read(path: Path) -> Ed25519PrivateKey:
    if path.stat().st_mode & 0o077:
        raise BadData(f"{path}: others than its owner may read or write this private key")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise BadData(f"{path}: this is no private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadData(f"{path}: this is no Ed25519 key")
    return key


def _put_new(path: Path, data: bytes) -> None:
    """Put a file there, whole and on the disk, unless somebody else was first."""
    part = _written(path, data, 0o600)
    with suppress(FileExistsError):
        path.hardlink_to(part)
    part.unlink()


def _publish(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        _written(path, data, 0o644).replace(path)


def _written(path: Path, data: bytes, mode: int) -> Path:
    """A file beside `path` with this content."""
    descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    return Path(part)
