"""The key that signs notices: made once, kept to its owner, checked when it is read."""

import threading
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from backbone.signing_key import PRIVATE_FILE, PUBLIC_FILE, SigningKey
from schemas.errors import BadData, Transient


def test_a_signature_is_checked_with_the_public_key_in_the_folder(tmp_path: Path) -> None:
    signature = SigningKey.in_folder(tmp_path).sign(b"who goes there")
    public = load_pem_public_key((tmp_path / PUBLIC_FILE).read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    public.verify(signature, b"who goes there")
    with pytest.raises(InvalidSignature):
        public.verify(signature, b"who goes here")


def test_the_key_is_made_once_and_signs_alike(tmp_path: Path) -> None:
    first, second = SigningKey.in_folder(tmp_path), SigningKey.in_folder(tmp_path)
    assert first.key_id == second.key_id
    assert len(first.key_id) == 16
    assert first.sign(b"x") == second.sign(b"x")


def test_only_its_owner_may_read_the_private_key(tmp_path: Path) -> None:
    SigningKey.in_folder(tmp_path)
    assert (tmp_path / PRIVATE_FILE).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [PRIVATE_FILE, PUBLIC_FILE]


def test_many_who_ask_at_once_get_the_same_key(tmp_path: Path) -> None:
    ids: list[str] = []
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait(10.0)
        ids.append(SigningKey.in_folder(tmp_path).key_id)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_a_lost_public_key_is_written_again(tmp_path: Path) -> None:
    SigningKey.in_folder(tmp_path)
    (tmp_path / PUBLIC_FILE).write_text("nonsense", "utf-8")
    key = SigningKey.in_folder(tmp_path)
    assert (tmp_path / PUBLIC_FILE).read_text("utf-8") == key.public_pem


def test_a_private_key_that_others_may_read_is_refused_by_name(tmp_path: Path) -> None:
    SigningKey.in_folder(tmp_path)
    (tmp_path / PRIVATE_FILE).chmod(0o644)
    with pytest.raises(BadData, match=f"{PRIVATE_FILE}: others than its owner"):
        SigningKey.in_folder(tmp_path)


def test_what_is_no_key_or_another_kind_of_key_is_refused_by_name(tmp_path: Path) -> None:
    other = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content, why in ((b"nonsense", "no private key"), (other, "no Ed25519 key")):
        (tmp_path / PRIVATE_FILE).write_bytes(content)
        (tmp_path / PRIVATE_FILE).chmod(0o600)
        with pytest.raises(BadData, match=f"{PRIVATE_FILE}: this is {why}"):
            SigningKey.in_folder(tmp_path)


def test_a_folder_that_is_not_there_is_transient_and_named(tmp_path: Path) -> None:
    with pytest.raises(Transient, match="absent"):
        SigningKey.in_folder(tmp_path / "absent")
