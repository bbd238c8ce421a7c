"""A schema registry for a night on one machine: Confluent's HTTP interface for Avro, state in one JSON file.

    python -m backbone.schema_registry --port PORT --file FILE

Follows the Schema Registry's API reference (Confluent Platform 7): subjects, versions, ids, the modes
READWRITE and IMPORT (in which a writer pins an id), and its error codes. A schema has one id wherever it is
registered, unless pinned to another; ids that nobody pins are counted from 100000, above those pinned for
alerts. Compatibility is not judged: the level is NONE, and another is refused. References, deletion, JSON
Schema and Protobuf are not served.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from aiohttp import web
from fastavro import parse_schema
from fastavro.schema import SchemaParseException, UnknownType
from pydantic import TypeAdapter, ValidationError

from schemas.errors import BadData

FIRST_ID = 100_000
MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
_MODES = ("READWRITE", "IMPORT")
_GLOBAL = ""
_MAX_BODY = 8 * 2**20


class RegistryError(Exception):
    """An answer other than success: Confluent's error code, whose first three digits are the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.code if self.code < 1000 else self.code // 100


@dataclass
class _State:
    """What the file holds. `schemas`: id -> text; `subjects`: name -> ids, version 1 first."""

    schemas: dict[int, str] = field(default_factory=dict)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=lambda: {_GLOBAL: "READWRITE"})


_STATE = TypeAdapter(_State)


class SchemaStore:
    """Subjects and schemas, kept in `path` (written anew, atomically, at every change).

    Raises BadData naming the file if it exists and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _read(path)

    def register(self, subject: str, text: str, pinned: int | None) -> int:
        """The id of a schema under `subject`: the one it has, the pinned one, or the next.

        Raises RegistryError (42201 no schema, 42205 an id that cannot be pinned, or none where one must be).
        """
        canonical = _canonical(text)
        versions = self._state.subjects.get(subject, [])
        present = self._id_of(canonical, versions)
        if pinned is not None:
            self._check_pinned(subject, pinned, canonical, present)
        if present is not None:
            return present
        if pinned is None and self._effective_mode(subject) == "IMPORT":
            raise RegistryError(42205, f"Subject {subject} is not in read-write mode")
        schema_id = self._id_of(canonical, self._state.schemas) if pinned is None else pinned
        if schema_id is None:
            schema_id = max([FIRST_ID - 1, *self._state.schemas]) + 1
        self._state.schemas[schema_id] = canonical
        self._state.subjects[subject] = [*versions, schema_id]
        self._write()
        return schema_id

    def _check_pinned(self, subject: str, pinned: int, canonical: str, present: int | None) -> None:
        if self._effective_mode(subject) != "IMPORT":
            raise RegistryError(42205, f"Subject {subject} is not in import mode")
        if present not in {None, pinned} or not _same(self._state.schemas.get(pinned, canonical), canonical):
            raise RegistryError(42205, f"Overwrite new schema with id {pinned} is not permitted.")

    def schema(self, schema_id: int) -> str:
        """The text of an id. Raises RegistryError (40403)."""
        if schema_id not in self._state.schemas:
            raise RegistryError(40403, f"Schema {schema_id} not found")
        return self._state.schemas[schema_id]

    def subjects(self) -> list[str]:
        """All subjects, sorted."""
        return sorted(self._state.subjects)

    def versions(self, subject: str) -> list[int]:
        """Ids of a subject's versions, version 1 first. Raises RegistryError (40401)."""
        if subject not in self._state.subjects:
            raise RegistryError(40401, f"Subject '{subject}' not found.")
        return self._state.subjects[subject]

    def version_of(self, subject: str, text: str) -> tuple[int, int]:
        """(version, id) of a schema under a subject. Raises RegistryError (40401, 40403)."""
        versions = self.versions(subject)
        schema_id = self._id_of(_canonical(text), versions)
        if schema_id is None:
            raise RegistryError(40403, "Schema not found")
        return versions.index(schema_id) + 1, schema_id

    def _effective_mode(self, subject: str) -> str | None:
        return self.mode(subject) or self.mode(_GLOBAL)

    def mode(self, subject: str) -> str | None:
        """The mode set for a subject (`""`: for all)."""
        return self._state.modes.get(subject)

    def set_mode(self, subject: str, mode: str, *, force: bool) -> None:
        """Raises RegistryError for an unknown mode, or for IMPORT over schemas, unless forced."""
        if mode not in _MODES:
            raise RegistryError(42204, f"Invalid mode. Valid values are {', '.join(_MODES)}")
        occupied = self._state.subjects.get(subject) if subject else self._state.subjects
        if mode == "IMPORT" and occupied and not force:
            raise RegistryError(42205, "Cannot import since found existing subjects")
        self._state.modes[subject] = mode
        self._write()

    def _id_of(self, canonical: str, ids: Iterable[int]) -> int | None:
        return next((number for number in ids if _same(self._state.schemas[number], canonical)), None)

    def _write(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.new")
        with temporary.open("wb") as file:
            file.write(_STATE.dump_json(self._state, indent=1))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _read(path: Path) -> _State:
    if not path.exists():
        return _State()
    try:
        return _STATE.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadData(f"schema registry's file {path} cannot be read: {error}") from error


def _canonical(text: str) -> str:
    """The schema's JSON without blanks, once it is known to be Avro. Raises RegistryError (42201)."""
    try:
        document = json.loads(text)
        parse_schema(document)
    except (ValueError, TypeError, KeyError, AttributeError, SchemaParseException, UnknownType) as error:
        raise RegistryError(42201, f"Invalid schema: {error!r}") from error
    return json.dumps(document, separators=(",", ":"))


def _same(one: str, other: str) -> bool:
    """Whether two texts are one schema: the order of a JSON object's keys says nothing, and fastavro's varies."""
    return one == other or json.loads(one) == json.loads(other)


# --- HTTP ---------------------------------------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(store: SchemaStore) -> web.Application:
    """The registry's web application over a store."""
    app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors])
    handlers = _Handlers(store)
    app.add_routes([
        web.get("/", handlers.root),
        web.get("/subjects", handlers.subjects),
        web.post("/subjects/{subject}", handlers.lookup),
        web.get("/subjects/{subject}/versions", handlers.versions),
        web.post("/subjects/{subject}/versions", handlers.register),
        web.get("/subjects/{subject}/versions/{version}", handlers.version),
        web.get("/schemas/ids/{id}", handlers.schema),
        web.get("/schemas/types", handlers.types),
        web.get("/config", handlers.config),
        web.put("/config", handlers.set_config),
        web.get("/mode", handlers.mode),
        web.put("/mode", handlers.set_mode),
        web.get("/mode/{subject}", handlers.mode),
        web.put("/mode/{subject}", handlers.set_mode),
    ])  # fmt: skip
    return app


def _answer(content: object, status: int = 200) -> web.Response:
    return web.json_response(content, status=status, content_type=MEDIA_TYPE)


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as the registry words it: `error_code` and `message`."""
    try:
        return await handler(request)
    except RegistryError as error:
        return _answer({"error_code": error.code, "message": str(error)}, error.status)
    except web.HTTPException as error:
        return _answer({"error_code": error.status, "message": f"HTTP {error.status} {error.reason}"}, error.status)


async def _body(request: web.Request) -> dict[str, object]:
    try:
        body = json.loads(await request.text())
    except ValueError as error:
        raise RegistryError(400, f"Unable to process JSON: {error}") from error
    if not isinstance(body, dict):
        raise RegistryError(422, "the body is not a JSON object")
    return body


def _schema_text(body: dict[str, object]) -> str:
    text = body.get("schema")
    if body.get("schemaType") not in {None, "AVRO"} or body.get("references"):
        raise RegistryError(42201, "Invalid schema: only AVRO without references is served here")
    if not isinstance(text, str) or not text:
        raise RegistryError(42201, "Empty schema")
    return text


class _Handlers:
    def __init__(self, store: SchemaStore) -> None:
        self._store = store

    async def root(self, _: web.Request) -> web.Response:
        return _answer({})

    async def types(self, _: web.Request) -> web.Response:
        return _answer(["AVRO"])

    async def subjects(self, request: web.Request) -> web.Response:
        prefix = request.query.get("subjectPrefix", "")
        return _answer([name for name in self._store.subjects() if name.startswith(prefix)])

    async def register(self, request: web.Request) -> web.Response:
        body = await _body(request)
        pinned = body.get("id")
        if isinstance(pinned, bool) or not isinstance(pinned, int | None):
            raise RegistryError(422, f"the id {pinned!r} is not an integer")
        wanted = pinned if pinned is not None and pinned >= 0 else None  # clients send -1 for none
        return _answer({"id": self._store.register(request.match_info["subject"], _schema_text(body), wanted)})

    async def lookup(self, request: web.Request) -> web.Response:
        subject, text = request.match_info["subject"], _schema_text(await _body(request))
        return self._described(subject, self._store.version_of(subject, text)[0])

    async def versions(self, request: web.Request) -> web.Response:
        count = len(self._store.versions(request.match_info["subject"]))
        return _answer(list(range(1, count + 1)))

    async def version(self, request: web.Request) -> web.Response:
        subject, wanted = request.match_info["subject"], request.match_info["version"]
        count = len(self._store.versions(subject))
        if wanted in {"latest", "-1"}:
            return self._described(subject, count)
        if not wanted.isdecimal() or int(wanted) < 1:
            raise RegistryError(42202, f"The specified version '{wanted}' is not a valid version id.")
        if int(wanted) > count:
            raise RegistryError(40402, f"Version {wanted} not found.")
        return self._described(subject, int(wanted))

    def _described(self, subject: str, version: int) -> web.Response:
        schema_id = self._store.versions(subject)[version - 1]
        text = self._store.schema(schema_id)
        return _answer({"subject": subject, "version": version, "id": schema_id, "schema": text})

    async def schema(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        if not wanted.isdecimal():
            raise RegistryError(404, "HTTP 404 Not Found")
        return _answer({"schema": self._store.schema(int(wanted))})

    async def config(self, _: web.Request) -> web.Response:
        return _answer({"compatibilityLevel": "NONE"})

    async def set_config(self, request: web.Request) -> web.Response:
        level = (await _body(request)).get("compatibility")
        if level != "NONE":
            raise RegistryError(42203, f"Invalid compatibility level {level!r}: only NONE is served here")
        return _answer({"compatibility": "NONE"})

    async def mode(self, request: web.Request) -> web.Response:
        subject = request.match_info.get("subject", _GLOBAL)
        mode = self._store.mode(subject)
        if mode is None and request.query.get("defaultToGlobal") == "true":
            mode = self._store.mode(_GLOBAL)
        if mode is None:
            raise RegistryError(40409, f"Subject '{subject}' does not have subject-level mode configured")
        return _answer({"mode": mode})

    async def set_mode(self, request: web.Request) -> web.Response:
        mode = str((await _body(request)).get("mode"))
        force = request.query.get("force", "false") == "true"
        self._store.set_mode(request.match_info.get("subject", _GLOBAL), mode, force=force)
        return _answer({"mode": mode})


class SchemaRegistry:
    """The server, in the running event loop. An async context manager; `url` once it is entered.

    `port` 0 takes a free one. Raises BadData for an unreadable file or a port in use.
    """

    def __init__(self, path: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host, self._port = host, port
        self._runner = web.AppRunner(application(SchemaStore(path)), access_log=None)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise BadData(f"schema registry cannot listen at {self._host}:{self._port}: {error}") from error
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    async with SchemaRegistry(options.file, host=options.host, port=options.port) as registry:
        sys.stdout.write(f"ready {registry.url}\n")
        sys.stdout.flush()
        await stop.wait()


def main(arguments: list[str] | None = None) -> int:
    """The server as a process, until SIGTERM; says `ready URL` on stdout."""
    parser = argparse.ArgumentParser(prog="backbone.schema_registry", description="An Avro schema registry.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--file", type=Path, required=True, help="where the schemas are kept")
    try:
        asyncio.run(_serve(parser.parse_args(arguments)))
    except BadData as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
