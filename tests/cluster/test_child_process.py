import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from cluster.child_process import ChildProcess
from schemas.errors import BadData, Broken, Transient

REPOSITORY = Path(__file__).parents[2]


def _child(tmp_path: Path, program: str) -> ChildProcess:
    return ChildProcess("child", [sys.executable, "-c", textwrap.dedent(program)], tmp_path / "child.log")


def _gone(pid: int, deadline_s: float = 5.0) -> bool:
    """Whether a process ends in time: no such pid, or a zombie that nobody has waited for."""
    give_up = time.monotonic() + deadline_s
    while time.monotonic() < give_up:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_a_child_is_ready_when_it_says_so_and_stops_when_asked(tmp_path: Path) -> None:
    program = """
        import signal, sys, time
        print("warming up", flush=True)
        print("ready http://somewhere", flush=True)
        signal.pause()
    """
    with _child(tmp_path, program) as child:
        assert child.wait_for("ready") == "ready http://somewhere"
        assert child.returncode is None
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    assert child.returncode == -signal.SIGTERM


def test_a_child_that_dies_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        _child(tmp_path, "raise SystemExit('no such night')") as child,
        pytest.raises(Broken, match=r"child ended with 1 and did not say 'ready':\nno such night"),
    ):
        child.wait_for("ready")


def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        _child(tmp_path, "import signal; signal.pause()") as child,
        pytest.raises(Transient, match=r"within 0\.2 s"),
    ):
        child.wait_for("ready", 0.2)


def test_a_log_of_an_earlier_run_does_not_make_a_child_ready(tmp_path: Path) -> None:
    (tmp_path / "child.log").write_text("ready\n")
    with _child(tmp_path, "import signal; signal.pause()") as child, pytest.raises(Transient):
        child.wait_for("ready", 0.2)


def test_a_child_that_ignores_the_signal_is_killed_with_its_group(tmp_path: Path) -> None:
    program = """
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        print("ready", grandchild.pid, flush=True)
        signal.pause()
    """
    child = _child(tmp_path, program)
    child.start()
    grandchild = int(child.wait_for("ready").split()[1])
    assert child.stop(0.2) == -signal.SIGKILL
    assert _gone(grandchild)


def test_a_program_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="cannot start /no/such/program"):
        ChildProcess("child", ["/no/such/program"], tmp_path / "log").start()


def test_a_child_is_started_by_the_main_thread_only(tmp_path: Path) -> None:
    refused = []

    def start() -> None:
        try:
            _child(tmp_path, "pass").start()
        except Broken as error:
            refused.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert refused == ["child must be started by the main thread, with which it is to die"]


PARENT = """
import signal, sys
from pathlib import Path
from cluster.child_process import ChildProcess
from cluster.services import EmbeddedKafka, EmbeddedPostgres

folder = Path(sys.argv[1])
stubborn = '''
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
'''
with (
    EmbeddedKafka(folder / "kafka.log") as kafka,
    EmbeddedPostgres(Path(sys.argv[2])) as postgres,
    ChildProcess("other", [sys.executable, "-c", stubborn], folder / "other.log") as other,
):
    other.wait_for("ready")
    print(kafka.process.pid, postgres.process.pid, other.pid, flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_service_outlives_its_parent_however_it_dies(
    how: signal.Signals, tmp_path: Path, cluster_folder: Path
) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(cluster_folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.send_signal(how)
        parent.wait(10)
    assert [_gone(pid) for pid in pids] == [True, True, True]
