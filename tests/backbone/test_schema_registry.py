import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from backbone.registry_client import RegistryClient
from backbone.schema_registry import FIRST_ID, SchemaRegistry
from schemas.errors import BadData, Transient

REPOSITORY = Path(__file__).parents[2]
VISIT = {"type": "record", "name": "visit", "fields": [{"name": "ra", "type": "double"}]}
ALERT = {"type": "record", "name": "alert", "fields": [{"name": "diaSourceId", "type": "long"}]}


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SchemaRegistry]:
    async with SchemaRegistry(tmp_path / "registry.json") as server:
        yield server


async def _ask(server: SchemaRegistry, method: str, path: str, body: object = None) -> tuple[int, object]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, json=body) as answer,
    ):
        assert answer.content_type == "application/vnd.schemaregistry.v1+json"
        return answer.status, json.loads(await answer.text())


async def test_confluents_own_client_registers_finds_and_reads_schemas(registry: SchemaRegistry) -> None:
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError  # noqa: PLC0415

    def talk() -> None:
        with SchemaRegistryClient({"url": registry.url}) as client:
            schema = Schema(json.dumps(VISIT), "AVRO")
            first = client.register_schema("visits-value", schema)
            assert first == client.register_schema("visits-value", schema) == FIRST_ID
            assert client.register_schema("other-value", schema) == FIRST_ID
            assert json.loads(client.get_schema(first).schema_str or "") == VISIT
            found = client.lookup_schema("visits-value", schema)
            assert (found.schema_id, found.version, found.subject) == (FIRST_ID, 1, "visits-value")
            assert client.register_schema("visits-value", Schema(json.dumps(ALERT), "AVRO")) == FIRST_ID + 1
            assert client.get_latest_version("visits-value").version == 2
            assert client.get_version("visits-value", 1).schema_id == FIRST_ID
            assert client.get_versions("visits-value") == [1, 2]
            assert client.get_subjects() == ["other-value", "visits-value"]
            with pytest.raises(SchemaRegistryError) as refusal:
                client.get_latest_version("nobody-value")
            assert (refusal.value.http_status_code, refusal.value.error_code) == (404, 40401)
            with pytest.raises(SchemaRegistryError) as refusal:
                client.register_schema("visits-value", Schema('{"type": "recrod"}', "AVRO"))
            assert (refusal.value.http_status_code, refusal.value.error_code) == (422, 42201)

    await asyncio.to_thread(talk)


async def test_an_id_is_pinned_in_import_mode_only_and_never_given_to_another_schema(
    registry: SchemaRegistry,
) -> None:
    text, other = json.dumps(ALERT), json.dumps(VISIT)
    path = "/subjects/alerts-value/versions"
    status, answer = await _ask(registry, "POST", path, {"schema": text, "id": 1101})
    assert (status, answer["error_code"]) == (422, 42205)
    assert await _ask(registry, "PUT", "/mode/alerts-value", {"mode": "IMPORT"}) == (200, {"mode": "IMPORT"})
    for same in (text, text, json.dumps(ALERT, sort_keys=True)):
        assert await _ask(registry, "POST", path, {"schema": same, "id": 1101}) == (200, {"id": 1101})
    assert await _ask(registry, "GET", "/subjects/alerts-value/versions") == (200, [1])
    for body in ({"schema": other, "id": 1101}, {"schema": text, "id": 1102}):
        status, answer = await _ask(registry, "POST", path, body)
        assert (status, answer["error_code"]) == (422, 42205)
    assert await _ask(registry, "POST", "/subjects/visits-value/versions", {"schema": other}) == (
        200,
        {"id": FIRST_ID},
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/schemas/ids/7", None, 404, 40403),
        ("GET", "/schemas/ids/seven", None, 404, 404),
        ("GET", "/nowhere", None, 404, 404),
        ("GET", "/subjects/nobody/versions", None, 404, 40401),
        ("GET", "/subjects/visits/versions/2", None, 404, 40402),
        ("GET", "/subjects/visits/versions/first", None, 422, 42202),
        ("POST", "/subjects/visits", {"schema": json.dumps(ALERT)}, 404, 40403),
        ("POST", "/subjects/visits/versions", {"schema": "not json"}, 422, 42201),
        ("POST", "/subjects/visits/versions", {"schema": '{"type": "record"}'}, 422, 42201),
        ("POST", "/subjects/visits/versions", {"schema": ""}, 422, 42201),
        ("POST", "/subjects/visits/versions", {}, 422, 42201),
        ("POST", "/subjects/visits/versions", [], 422, 422),
        ("POST", "/subjects/visits/versions", {"schema": json.dumps(ALERT), "id": "7"}, 422, 422),
        (
            "POST",
            "/subjects/visits/versions",
            {"schema": json.dumps(ALERT), "schemaType": "PROTOBUF"},
            422,
            42201,
        ),
        ("PUT", "/config", {"compatibility": "FULL"}, 422, 42203),
        ("PUT", "/mode", {"mode": "READONLY"}, 422, 42204),
        ("PUT", "/mode", {"mode": "IMPORT"}, 422, 42205),
        ("GET", "/mode/visits", None, 404, 40409),
        ("DELETE", "/subjects/visits", None, 405, 405),
    ],
)
async def test_a_refusal_carries_the_registrys_error_code(
    registry: SchemaRegistry, method: str, path: str, body: object, status: int, code: int
) -> None:
    await _ask(registry, "POST", "/subjects/visits/versions", {"schema": json.dumps(VISIT)})
    answered, answer = await _ask(registry, method, path, body)
    assert (answered, answer["error_code"]) == (status, code)
    assert answer["message"]
    assert await _ask(registry, "GET", "/subjects/visits/versions") == (200, [1])


async def test_what_a_java_client_asks_first_is_answered(registry: SchemaRegistry) -> None:
    assert await _ask(registry, "GET", "/") == (200, {})
    assert await _ask(registry, "GET", "/schemas/types") == (200, ["AVRO"])
    assert await _ask(registry, "GET", "/config") == (200, {"compatibilityLevel": "NONE"})
    assert await _ask(registry, "PUT", "/config", {"compatibility": "NONE"}) == (
        200,
        {"compatibility": "NONE"},
    )
    assert await _ask(registry, "GET", "/mode") == (200, {"mode": "READWRITE"})
    assert await _ask(registry, "GET", "/mode/x?defaultToGlobal=true") == (200, {"mode": "READWRITE"})


async def test_ids_outlive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    async with SchemaRegistry(file) as server, RegistryClient(server.url) as client:
        assert await client.register("alerts-value", ALERT, 1101) == 1101
        assert await client.register("visits-value", VISIT) == FIRST_ID
    async with SchemaRegistry(file) as server, RegistryClient(server.url) as client:
        assert await client.register("visits-value", VISIT) == FIRST_ID
        assert (await client.schema(1101))["name"] == "alert"
        assert await client.register("more-value", ALERT | {"name": "more"}) == FIRST_ID + 1
        assert await _ask(server, "GET", "/mode/alerts-value") == (200, {"mode": "READWRITE"})
    assert _names(tmp_path) == ["registry.json"]


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text('{"schemas": 3}')
    with pytest.raises(BadData, match=r"registry\.json cannot be read"):
        SchemaRegistry(tmp_path / "registry.json")


async def test_a_port_in_use_is_refused(registry: SchemaRegistry, tmp_path: Path) -> None:
    port = int(registry.url.rpartition(":")[2])
    with pytest.raises(BadData, match=f"cannot listen at 127.0.0.1:{port}"):
        await SchemaRegistry(tmp_path / "other.json", port=port).__aenter__()


async def test_the_client_asks_once_for_an_id(tmp_path: Path) -> None:
    async with SchemaRegistry(tmp_path / "registry.json") as server:
        client = RegistryClient(server.url)
        schema_id = await client.register("visits-value", VISIT)
        parsed = await client.schema(schema_id)
    try:  # the registry is gone; what is known is still known
        assert await client.schema(schema_id) is parsed
        assert await client.register("visits-value", VISIT) == schema_id
        with pytest.raises(Transient, match="schemas/ids/7 did not answer"):
            await client.schema(7)
    finally:
        await client.close()


async def _import(server: SchemaRegistry, subject: str, schema: object, schema_id: int) -> None:
    """By another than Pachon."""
    await _ask(server, "PUT", f"/mode/{subject}", {"mode": "IMPORT"})
    body = {"schema": json.dumps(schema), "id": schema_id}
    assert await _ask(server, "POST", f"/subjects/{subject}/versions", body) == (200, {"id": schema_id})
    await _ask(server, "PUT", f"/mode/{subject}", {"mode": "READWRITE"})


async def test_an_id_that_is_another_schema_s_is_refused_and_nothing_is_changed(registry: SchemaRegistry) -> None:
    await _import(registry, "strange-value", VISIT, 1101)
    async with RegistryClient(registry.url) as client:
        with pytest.raises(BadData, match=r"id 1101: it is another schema, .*visit.*, than the one for alerts-value"):
            await client.register("alerts-value", ALERT, 1101)
    assert await _ask(registry, "GET", "/subjects") == (200, ["strange-value"])
    assert (await _ask(registry, "GET", "/mode/alerts-value"))[0] == 404


@pytest.mark.parametrize("written", [ALERT, ALERT | {"doc": "by its owner"}, dict(reversed(ALERT.items()))])
async def test_a_schema_that_the_registry_has_is_taken_without_importing(
    registry: SchemaRegistry, written: object
) -> None:
    await _import(registry, "owners-value", written, 1101)
    async with RegistryClient(registry.url) as client:
        assert await client.register("alerts-value", ALERT, 1101) == 1101
    status, found = await _ask(registry, "GET", "/subjects/alerts-value/versions/latest")
    assert (status, found["id"], json.loads(found["schema"])) == (200, 1101, written)
    assert (await _ask(registry, "GET", "/mode/alerts-value"))[0] == 404


async def test_a_schema_that_the_subject_has_under_another_id_is_refused(registry: SchemaRegistry) -> None:
    await _ask(registry, "POST", "/subjects/alerts-value/versions", {"schema": json.dumps(ALERT)})
    await _import(registry, "owners-value", ALERT, 1101)
    async with RegistryClient(registry.url) as client:
        with pytest.raises(BadData, match=f"alerts-value has the schema as {FIRST_ID}, not as 1101"):
            await client.register("alerts-value", ALERT, 1101)


async def test_after_an_import_the_subject_takes_schemas_again_also_if_it_was_refused(
    registry: SchemaRegistry,
) -> None:
    async with RegistryClient(registry.url) as client:
        with pytest.raises(BadData, match="42201"):
            await client.register("alerts-value", {"type": "recrod"}, 1101)
        assert await _ask(registry, "GET", "/mode/alerts-value") == (200, {"mode": "READWRITE"})
        assert await client.register("alerts-value", ALERT, 1101) == 1101
        assert await client.register("alerts-value", VISIT) == FIRST_ID


async def test_who_pins_no_id_is_refused_in_import_mode(registry: SchemaRegistry) -> None:
    await _ask(registry, "PUT", "/mode/alerts-value", {"mode": "IMPORT"})
    status, answer = await _ask(registry, "POST", "/subjects/alerts-value/versions", {"schema": json.dumps(ALERT)})
    assert (status, answer["error_code"]) == (422, 42205)
    assert answer["message"] == "Subject alerts-value is not in read-write mode"


async def test_the_client_says_what_the_registry_refused(registry: SchemaRegistry) -> None:
    async with RegistryClient(registry.url) as client:
        with pytest.raises(BadData, match=r"GET .*/schemas/ids/7: HTTP 404 .*40403"):
            await client.schema(7)
        with pytest.raises(BadData, match=r"POST .*/subjects/a%2Fb/versions: HTTP 422 .*42201"):
            await client.register("a/b", {"type": "recrod"})


async def test_the_client_gives_up_a_registry_that_says_nothing() -> None:
    hung_up = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        hung_up.set()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with RegistryClient(f"http://127.0.0.1:{port}", deadline_s=0.2) as client:
            with pytest.raises(Transient, match=r"did not answer within 0\.2 s"):
                await client.schema(1)
        await asyncio.wait_for(hung_up.wait(), 5.0)


def test_the_process_says_where_it_listens_and_ends_when_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backbone.schema_registry", "--file", str(tmp_path / "registry.json")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready, url = server.stdout.readline().split()
        assert (ready, url.startswith("http://127.0.0.1:")) == ("ready", True)
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
