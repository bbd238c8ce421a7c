"""The schema registry, seen by whoever reads or writes Avro: register a schema, fetch one by id."""

import asyncio
import json
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp
from fastavro import parse_schema
from fastavro.schema import SchemaParseException, UnknownType

from schemas.errors import BadData, Transient

Schema = dict[str, object]


class RegistryClient:
    """Confluent's Schema Registry over HTTP, with a cache: what an id names never changes.

    An async context manager. Every call is answered within `deadline_s` or raises Transient; what the
    registry refuses raises BadData.
    """

    def __init__(self, url: str, *, deadline_s: float = 10.0) -> None:
        self._url, self._deadline_s = url.rstrip("/"), deadline_s
        self._session: aiohttp.ClientSession | None = None
        self._schemas: dict[int, Schema] = {}
        self._ids: dict[tuple[str, str], int] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def register(self, subject: str, schema: Schema, schema_id: int | None = None) -> int:
        """The schema's id under `subject`. To get `schema_id` for it, the subject is put in mode IMPORT."""
        text = json.dumps(schema)
        if (subject, text) not in self._ids:
            body: dict[str, object] = {"schema": text}
            if schema_id is not None:
                await self._call("PUT", f"/mode/{quote(subject, safe='')}?force=true", {"mode": "IMPORT"})
                body["id"] = schema_id
            answer = await self._call("POST", f"/subjects/{quote(subject, safe='')}/versions", body)
            if not isinstance(given := answer.get("id"), int):
                raise BadData(f"registry {self._url}: no id for {subject}: {answer}")
            self._ids[subject, text] = given
        return self._ids[subject, text]

    async def schema(self, schema_id: int) -> Schema:
        """The schema of an id, parsed as fastavro wants it. Raises BadData if the registry has no such id."""
        if schema_id not in self._schemas:
            answer = await self._call("GET", f"/schemas/ids/{schema_id}")
            if answer.get("schemaType", "AVRO") != "AVRO":
                raise BadData(f"registry {self._url}: schema {schema_id} is {answer['schemaType']}, not AVRO")
            self._schemas[schema_id] = _parsed(str(answer.get("schema")), f"registry {self._url}, id {schema_id}")
        return self._schemas[schema_id]

    async def _call(self, method: str, path: str, body: Schema | None = None) -> Schema:
        url = self._url + path
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with (
                asyncio.timeout(self._deadline_s),
                self._session.request(method, url, json=body) as answer,
            ):
                text, status = await answer.text(), answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Transient(f"registry {url} did not answer within {self._deadline_s} s: {error!r}") from error
        return _checked(f"{method} {url}", status, text)


def _parsed(text: str, whose: str) -> Schema:
    """A record's schema. Raises BadData naming `whose` for anything else."""
    try:
        parsed = parse_schema(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, SchemaParseException, UnknownType) as error:
        raise BadData(f"{whose}: not an Avro schema: {error!r}") from error
    if not isinstance(parsed, dict):
        raise BadData(f"{whose}: not the schema of a record: {text[:200]}")
    return parsed


def _checked(call: str, status: int, text: str) -> Schema:
    """The answer's JSON object, or the error that it means."""
    if status >= 500:
        raise Transient(f"registry, {call}: HTTP {status} {text[:200]}")
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise BadData(f"registry, {call}: not JSON: {text[:200]!r}") from error
    if status != 200 or not isinstance(answer, dict):
        raise BadData(f"registry, {call}: HTTP {status} {text[:500]}")
    return answer
