"""What brokers are told: the same text for the same facts, signed as it stands, and a digest that they can compute."""

import hashlib
import json
from pathlib import Path

import pytest

from backbone.notices import Notice, digest_of, text_of
from backbone.signing_key import SigningKey


def test_a_notice_is_json_with_its_kind_and_version() -> None:
    fields = {"visit": 2026070500001, "reason": "Mirkó's ghost — again"}
    assert json.loads(text_of("withdrawn", fields)) == {"kind": "withdrawn", "version": 1, **fields}


def test_ids_of_63_bits_are_told_to_the_last_digit() -> None:
    assert f":{2**63 - 1}" in text_of("withdrawn", {"diaSourceId": 2**63 - 1})


def test_a_number_that_json_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        text_of("withdrawn", {"timeWithdrawnMjdTai": float("nan")})


def test_the_digest_is_of_sorted_ids_and_hashes_of_packets() -> None:
    packets = {300: b"third", 2: b"first", 2**62: b"last"}
    plain = b""
    for number in (2, 300, 2**62):
        plain += number.to_bytes(8, "big") + hashlib.sha256(packets[number]).digest()
    told = digest_of({number: hashlib.sha256(packet).digest() for number, packet in packets.items()})
    assert told == hashlib.sha256(plain).hexdigest()


def test_the_digest_of_no_alerts_is_that_of_nothing() -> None:
    assert digest_of({}) == hashlib.sha256(b"").hexdigest()


def test_a_notice_signed_again_is_the_same(tmp_path: Path) -> None:
    key = SigningKey.in_folder(tmp_path)
    first, second = (Notice.signed("20260705", '{"kind":"x"}', key) for _ in range(2))
    assert first == second
    assert dict(first.headers) == {"signature": first.signature, "key-id": key.key_id.encode()}
