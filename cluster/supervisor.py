"""Plays a night in a process of its own, the driver, and starts again what dies: it, the night's servers, the DAQ.

The driver holds the bus and Ray. Its state is in PostgreSQL and on the disk, so that starting and recovering are one
path: a new driver goes on where the last one stood. One that hangs is killed.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from cluster import proc
from cluster.child_process import dying_with
from cluster.heartbeat import Pulse
from cluster.options import NightOptions
from cluster.outside import Servers, Simulators, registry, servers, simulators, witness
from cluster.refill import Refill
from cluster.services import free_port, usable_port
from cluster.settings import Settings
from cluster.stored_clock import StoredClock
from schemas.errors import Broken, PachonError
from simulators.ocs.schedule import PlannedVisit, dump_plan

AGAIN = os.EX_TEMPFAIL
"""Exit code of a driver that a new one may do better than: its Ray is gone, or a server was away when it began."""

TICK_S = 0.2
SOON_S = 60.0
MAX_DEATHS = 10
"""As many deaths of the driver, each before it could play, within `SOON_S` of its start, or because it hung: it will
not live."""
MAX_PAUSE_S = 30.0

REFILL_S = 120.0
"""How long the end of a night waits until a broker that died has the alerts again."""

TOPICS_EVERY_S = 5.0
"""How often a broker of the night's own is asked for its topics, to make them again should it die."""


class Errand(BaseModel):
    """What a driver is told, by a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: NightOptions
    settings: Settings


def supervise(options: NightOptions, plan: Sequence[PlannedVisit], settings: Settings, console: Console) -> int:
    """Play a plan; the driver's exit code. Raises Broken if it keeps dying."""
    dump_plan(plan, settings.plan_file)
    usable_port("metrics", options.metrics_port)
    with servers(options, settings) as given:
        named = settings.model_copy(update={"kafka": given.kafka, "postgres": given.postgres})
        return asyncio.run(_supervise(options, plan[0].day_obs, named, given, console))


async def _supervise(options: NightOptions, day_obs: int, settings: Settings, given: Servers, console: Console) -> int:
    async with registry(options, settings) as registered:
        named = registered.model_copy(update={"daq": f"grpc://127.0.0.1:{free_port()}"})
        errand = settings.output / "driver.json"
        errand.write_text(Errand(options=options, settings=named).model_dump_json(), encoding="utf-8")
        with ExitStack() as stack:
            stack.enter_context(_forgotten(settings.ray_file))
            if options.fault:
                stack.enter_context(witness(named)).wait_for("ready")
            return await Supervisor(options, day_obs, named, given, console, errand, stack).run()


@contextmanager
def _forgotten(file: Path) -> Iterator[None]:
    """Have no file of an earlier night, and leave none: it is for the drivers of this one."""
    file.unlink(missing_ok=True)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


class Driver:
    """The driver's process, with this one's terminal. Its standard input ends when the observatory is silent.

    `command` is given a further argument: the file descriptor at which the driver's beats are heard.
    """

    def __init__(self, command: Sequence[str], pulse: Pulse) -> None:
        self.pulse = pulse
        self.hung = self.played = False
        self._process = subprocess.Popen(
            [*command, str(pulse.pipe)],
            stdin=subprocess.PIPE,
            pass_fds=(pulse.pipe,),
            preexec_fn=dying_with(os.getpid(), signal.SIGKILL),  # noqa: PLW1509 - see there
        )
        pulse.given()
        self._began = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def age_s(self) -> float:
        """Wall seconds since its start."""
        return time.monotonic() - self._began

    def tell_silence(self) -> None:
        """That the observatory has nothing more to say."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def stop(self, *, kill: bool) -> None:
        """Ask it to end the night, or make it."""
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)

    def kill_hung(self) -> None:
        """End one that gives no sign of life, with all that it began: that may stand still, too."""
        self.hung = True
        began = proc.descendants(self.pid)
        self.stop(kill=True)
        for each in began:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


@dataclass
class Supervisor:
    """Of one night."""

    options: NightOptions
    day_obs: int
    settings: Settings
    servers: Servers
    console: Console
    errand: Path
    stack: ExitStack
    simulators: Simulators | None = None
    stopped: bool = False
    early_deaths: int = 0
    refill: Refill = field(init=False)
    _topics_due: float = 0.0
    _asking: asyncio.Task[bool] | None = None
    _pids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The broker is the night's."""
        self.refill = Refill(self.settings, self.day_obs, self.stack, self.console)

    async def run(self) -> int:
        """Until a driver ends by itself, or the night is stopped; its exit code."""
        command = [sys.executable, "-m", "cluster.cli", "drive", str(self.errand)]
        while True:
            self.settings.join_file.unlink(missing_ok=True)  # of one that was killed
            with Pulse() as pulse:
                driver = Driver(command, pulse)
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, self._stop, driver)
                code = await self.watch(driver)
            if self.stopped or (code >= 0 and code != AGAIN):
                await self._refilled()
                return code
            self._mourn(driver, code)
            await self._pause()
            if self.stopped:
                return code

    def _stop(self, driver: Driver) -> None:
        """Ask the driver to end the night; asked a second time, kill it."""
        if self.simulators is not None:
            self.simulators.ocs.stop()
        if driver.code is None:
            driver.stop(kill=self.stopped)
        self.stopped = True

    async def _refilled(self) -> None:
        """Wait until the broker has all alerts again."""
        over = time.monotonic() + REFILL_S
        while self.refill.due and not self.stopped and time.monotonic() < over:
            await self._mend()
            await asyncio.sleep(TICK_S)

    async def watch(self, driver: Driver) -> int:
        """See to it that all runs until a driver has ended, or hangs and is killed; its exit code."""
        while (code := driver.code) is None:
            if not driver.hung and driver.pulse.stopped():
                structlog.get_logger().error("the driver hangs, and is killed", silent_s=driver.pulse.silent_s)
                driver.kill_hung()
            driver.played = driver.played or self.settings.join_file.exists()
            self._begin()
            await self._mend()
            self._note(driver)
            if self.simulators is not None and self.simulators.silent:
                driver.tell_silence()
            await asyncio.sleep(TICK_S)
        return code

    def _mourn(self, driver: Driver, code: int) -> None:
        """Raises Broken if it was one too many."""
        how = "hung" if driver.hung else "gave up" if code == AGAIN else f"died: {signal.Signals(-code).name}"
        structlog.get_logger().error("the driver is started again", how=how, age_s=driver.age_s)
        early = not driver.played or driver.age_s < SOON_S or driver.hung
        self.early_deaths = self.early_deaths + 1 if early else 0
        if self.early_deaths >= MAX_DEATHS:
            before = "soon after its start" if self.settings.clock_file.exists() else "before the night began"
            raise Broken(f"the night's driver {how}, and had {MAX_DEATHS} times hung, or ended {before}")
        self.console.print(f"\nthe night's driver {how}; it is started again")
        self._wake()

    def _wake(self) -> None:
        """Let go on what was stopped on purpose: who was to wake it may have been the driver."""
        children = self.servers.processes() | (self.simulators.processes() if self.simulators else {})
        for child in children.values():
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGCONT)

    async def _pause(self) -> None:
        """After early deaths, longer each time: what it needs may be away."""
        over = time.monotonic() + (min(2.0**self.early_deaths, MAX_PAUSE_S) if self.early_deaths else 0.0)
        while time.monotonic() < over and not self.stopped:
            await self._mend()
            await asyncio.sleep(TICK_S)

    def _begin(self) -> None:
        """Start the simulators as soon as the night's clock runs."""
        if self.simulators is None and self.settings.clock_file.exists() and not self.stopped:
            clock = StoredClock(self.settings.clock_file).line
            self.simulators = simulators(self.stack, self.options, self.settings, clock)

    async def _mend(self) -> None:
        """Start again the servers that died. What does not come up is tried again."""
        for name, server in self.servers.own.items():
            if server.process is not None and server.process.returncode is not None:
                if name == "kafka":
                    self.refill.begin()
                await self._tried(f"start {name} again", server.start)
        if self.simulators is not None and self.simulators.daq.returncode is not None and not self.stopped:
            await self._tried("start the DAQ again", self.simulators.start_daq)
        await self.refill.step()
        self._ask_for_topics()

    def _ask_for_topics(self) -> None:
        """Beside all else: a broker that stands still takes ten seconds over it, in which others may die."""
        if self._asking is not None:
            if not self._asking.done():
                return
            self._asking.result()
        if "kafka" in self.servers.own and not self.refill.due and time.monotonic() > self._topics_due:
            self._topics_due = time.monotonic() + TOPICS_EVERY_S
            self._asking = asyncio.create_task(self._tried("ask for topics", self.refill.topics.note, in_thread=True))

    async def _tried(self, what: str, act: Callable[[], None], *, in_thread: bool = False) -> bool:
        """Whether it could be done; programs are started by the main thread, with which they are to die."""
        log = structlog.get_logger().bind(what=what)
        try:
            if in_thread:
                await asyncio.to_thread(act)
            else:
                act()
        except PachonError as error:
            log.warning("cannot yet be done", error=str(error))
            return False
        if not in_thread:
            log.error("done, for it had died")
        return True

    def _note(self, driver: Driver) -> None:
        """Which process is what, in a file, whenever it changes."""
        children = self.servers.processes() | (self.simulators.processes() if self.simulators else {})
        pids = {"night": os.getpid(), "driver": driver.pid} | {name: child.pid for name, child in children.items()}
        if pids != self._pids:
            part = self.settings.process_file.with_suffix(".part")
            part.write_text(json.dumps(pids), encoding="utf-8")
            part.replace(self.settings.process_file)
            self._pids = pids
