"""What brokers are told besides alerts: one JSON object a notice, in UTF-8, signed as it stands.

Names are those of the alert schema. Ids are whole numbers of up to 63 bits (a reader that takes JSON's numbers for
doubles loses their ends), times MJD, TAI, angles deg, ICRS.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backbone.signing_key import SigningKey

DIGEST = "sha256 over diaSourceId (8 bytes, big-endian) + sha256(packet), by diaSourceId"
"""What `digest_of` computes, for the manifest, of the alerts that were acknowledged.

The packet is what follows the message's Confluent header of 5 bytes. Where the message has a header `archived-sha256`
(it was sent with smaller cutouts), that is the hash to take.
"""


VERSION = 1
"""Of what notices say, and how."""


@dataclass(frozen=True)
class Notice:
    """A signed message. `signature`: Ed25519 over exactly the bytes of `value`; `key_id`: which key made it."""

    key: bytes
    value: bytes
    signature: bytes
    key_id: str

    @classmethod
    def signed(cls, key: str, value: str, by: SigningKey) -> "Notice":
        """Sign a value."""
        data = value.encode()
        return cls(key.encode(), data, by.sign(data), by.key_id)

    @property
    def headers(self) -> list[tuple[str, str | bytes | None]]:
        """Of the Kafka message."""
        return [("signature", self.signature), ("key-id", self.key_id.encode())]


def text_of(kind: str, fields: Mapping[str, Any]) -> str:
    """The JSON of a notice: the same text for the same fields. Raises ValueError for a number that is not finite."""
    return json.dumps({"kind": kind, "version": VERSION, **fields}, separators=(",", ":"), allow_nan=False)


def digest_of(hashes: Mapping[int, bytes]) -> str:
    """Of alerts, by diaSourceId the SHA-256 of each packet; 64 hex digits."""
    whole = hashlib.sha256()
    for dia_source in sorted(hashes):
        whole.update(dia_source.to_bytes(8, "big") + hashes[dia_source])
    return whole.hexdigest()
