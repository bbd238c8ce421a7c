"""The schema registry, seen by whoever reads or writes Avro: register a schema, fetch one by id."""

import asyncio
import json
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import quote

import aiohttp
from fastavro import parse_schema
from fastavro.schema import SchemaParseException, UnknownType, to_parsing_canonical_form

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
        """The schema's id under `subject`.

        For a `schema_id` that the registry has not, the subject is in mode IMPORT for a moment. Raises BadData if that
        id is another schema's there, in Avro's Parsing Canonical Form, or the schema has another id under the subject.
        """
        text = json.dumps(schema)
        if (subject, text) not in self._ids:
            given = await (self._post(subject, text) if schema_id is None else self._pinned(subject, text, schema_id))
            if schema_id not in {None, given}:
                raise BadData(f"registry {self._url}: {subject} has the schema as {given}, not as {schema_id}")
            self._ids[subject, text] = given
        return self._ids[subject, text]

    async def _pinned(self, subject: str, text: str, schema_id: int) -> int:
        held = await self._text(schema_id)
        if held is None:
            return await self._imported(subject, text, schema_id)
        whose = f"registry {self._url}, id {schema_id}"
        if _canonical(held, whose) != _canonical(text, subject):
            raise BadData(f"{whose}: it is another schema, {held[:80]}, than the one for {subject}")
        return await self._post(subject, held)  # its own text: to a registry another is another schema

    async def _imported(self, subject: str, text: str, schema_id: int) -> int:
        mode = f"/mode/{quote(subject, safe='')}"
        await self._call("PUT", f"{mode}?force=true", {"mode": "IMPORT"})
        try:
            return await self._post(subject, text, id=schema_id)
        finally:
            await self._call("PUT", mode, {"mode": "READWRITE"})

    async def _post(self, subject: str, text: str, **pinned: int) -> int:
        answer = await self._call("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": text, **pinned})
        if not isinstance(given := answer.get("id"), int):
            raise BadData(f"registry {self._url}: no id for {subject}: {answer}")
        return given

    async def _text(self, schema_id: int) -> str | None:
        """The schema of an id, or None if the registry has no such."""
        call, status, text = await self._ask("GET", f"/schemas/ids/{schema_id}")
        return None if status == HTTPStatus.NOT_FOUND else str(_checked(call, status, text).get("schema"))

    async def schema(self, schema_id: int) -> Schema:
        """The schema of an id, parsed as fastavro wants it. Raises BadData if the registry has no such id."""
        if schema_id not in self._schemas:
            answer = await self._call("GET", f"/schemas/ids/{schema_id}")
            if answer.get("schemaType", "AVRO") != "AVRO":
                raise BadData(f"registry {self._url}: schema {schema_id} is {answer['schemaType']}, not AVRO")
            self._schemas[schema_id] = _parsed(str(answer.get("schema")), f"registry {self._url}, id {schema_id}")
        return self._schemas[schema_id]

    async def _call(self, method: str, path: str, body: Schema | None = None) -> Schema:
        return _checked(*await self._ask(method, path, body))

    async def _ask(self, method: str, path: str, body: Schema | None = None) -> tuple[str, int, str]:
        """What was asked, the HTTP status and the text of the answer."""
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
        return f"{method} {url}", status, text


def _canonical(text: str, whose: str) -> str:
    """What readers need of a schema to take bytes apart; docs, and the order of JSON's keys, are not in it."""
    return to_parsing_canonical_form(_parsed(text, whose))


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
