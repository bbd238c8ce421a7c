"""What a worker process does with a quantum, and what the registry then has: without Ray."""

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from errno import EIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import networkx as nx
import pytest
from lsst.daf.butler import Butler, DataCoordinate, DimensionUniverse, QuantumProvenanceData
from lsst.pipe.base import InvalidQuantumError
from sqlalchemy.exc import OperationalError

from backbone.butler import ButlerArchive
from cluster.batch import commands, ledger, quanta
from cluster.batch.quanta_work import QuantaWork
from cluster.batch.request import BatchRequest, Needs
from cluster.batch.run_folder import RunFolder, run_folders
from cluster.batch.work import Made
from schemas.errors import BadData, Transient
from schemas.instrument import camera

FOREIGN = Path(__file__).parent / "foreign"
DETECTORS = (6, 7)
ROOM_MB = 100_000
"""Quanta are executed in the tests' own process, which holds what other tests have left."""


class Run:
    """A run of the foreign pipeline on two detectors, its quanta executed here, one after another."""

    def __init__(self, butler: Path, folder: Path, *settings: str) -> None:
        self.butler, self.name = butler, f"u/tester/{uuid4().hex}"
        request = BatchRequest(
            butler=self.butler, pipeline=str(FOREIGN / "numbers.yaml"), inputs=("LSSTCam/defaults",), output="u/tester",
            where=f"instrument='LSSTCam' AND detector IN {DETECTORS}", settings=settings, python_path=(str(FOREIGN),),
            needs=dict.fromkeys(("number", "sum"), Needs(memory_mb=ROOM_MB)),
        )  # fmt: skip
        self.folder, _ = commands.prepare(folder / "run", request, self.name)

    def execute(self) -> Mapping[str, Made]:
        """What is not done; what came of each, by label and data id."""
        made = {}
        with Butler.from_config(str(self.butler), run=self.name, writeable=True) as butler:
            work = QuantaWork(self.folder, butler, self.name)
            done = work.done()
            blocked = set()
            for key in nx.topological_sort(work.stages[0]):
                if key not in done | blocked:
                    told = quanta.execute(work.begin(key, 1, work.needs(key)))
                    work.end(key, told)
                    made[f"{work.label(key)} {work.name(key)}"] = told
                    blocked |= nx.descendants(work.stages[0], key) if told.error else set()
            work.keep()
        return made

    def kept(self, dataset_type: str) -> list[Any]:
        """Every dataset of a type, read by the Data Butler alone."""
        with Butler.from_config(str(self.butler), collections=self.name) as butler:
            refs = butler.query_datasets(dataset_type, find_first=False, explain=False)
            return [butler.get(ref) for ref in refs if butler.stored(ref)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs."""
    folder = tmp_path_factory.mktemp("repository")
    ButlerArchive.create(folder).register_camera(camera("LSSTCam"))
    return folder


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Quanta executed in this process leave nothing of themselves in it."""
    level = logging.getLogger().level
    monkeypatch.syspath_prepend(str(FOREIGN))
    monkeypatch.setattr(quanta, "take_second_place", lambda: None)
    yield
    logging.getLogger().setLevel(level)


def test_a_failed_quantums_log_is_kept_and_what_is_done_again_is_there_once(repository: Path, tmp_path: Path) -> None:
    run = Run(repository, tmp_path, "number:misfortune=raises", f"number:once={tmp_path / 'was'}")
    first = run.execute()
    assert [name for name, told in first.items() if told.error == "unknown"] == [
        "number {instrument: 'LSSTCam', detector: 7}"
    ]
    assert any("seven is unlucky" in line.message for log in run.kept("number_log") for line in log)
    assert len(run.kept("number_metadata")) == 1
    second = run.execute()
    assert not any(told.error for told in second.values())
    assert {name: len(run.kept(name)) for name in ("number", "number_log", "number_metadata")} == {
        "number": 2, "number_log": 2, "number_metadata": 2,
    }  # fmt: skip
    assert run.kept("sum") == [{"value": 130}]


def test_a_quantum_whose_metadata_is_gone_is_done_again_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    run = Run(repository, tmp_path)
    run.execute()
    with Butler.from_config(str(run.butler), collections=run.name) as butler:
        Path(butler.getURI("number_metadata", instrument="LSSTCam", detector=7).ospath).unlink()
    assert len(run.kept("number_metadata")) == 1
    assert list(run.execute()) == ["number {instrument: 'LSSTCam', detector: 7}"]
    assert len(run.kept("number_metadata")) == 2
    assert run.execute() == {}


def test_what_is_made_is_kept_soon_also_if_nothing_more_is(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(repository, tmp_path)
    monkeypatch.setattr(ledger, "EVERY_S", 1000.0)
    with Butler.from_config(str(run.butler), run=run.name, writeable=True) as butler:
        work = QuantaWork(run.folder, butler, run.name)
        first = next(nx.topological_sort(work.stages[0]))
        work.end(first, quanta.execute(work.begin(first, 1, work.needs(first))))
        work.keep_due()
        assert run.kept("number_metadata") == []
        monkeypatch.setattr(ledger, "EVERY_S", 0.0)
        work.keep_due()
    assert len(run.kept("number_metadata")) == 1


@pytest.fixture
def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that has no room for the first two writes."""
    write, fails = QuantumProvenanceData.collect_and_transfer, [True, True]

    def transfer(*given: Any) -> None:
        if fails:
            fails.pop()
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        write(*given)

    monkeypatch.setattr(QuantumProvenanceData, "collect_and_transfer", transfer)
    monkeypatch.setattr(ledger, "EVERY_S", 0.0)


@pytest.mark.usefixtures("_full_disk")
def test_what_a_registry_had_no_room_for_is_written_later(repository: Path, tmp_path: Path) -> None:
    run = Run(repository, tmp_path)
    assert len(run.execute()) == len(DETECTORS) + 1
    assert len(run.kept("number_metadata")) == len(DETECTORS)
    assert run.execute() == {}


@pytest.mark.usefixtures("_full_disk")
def test_a_registry_that_stays_full_ends_the_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.0)
    with pytest.raises(Transient, match="database or disk is full"):
        Run(repository, tmp_path).execute()


def wrapped(cause: BaseException) -> ValueError:
    """As the Data Butler raises what its formatters do."""
    error = ValueError("Failure from formatter")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (BadData("a raw"), "refused"),
        (wrapped(BadData("a raw")), "refused"),
        (InvalidQuantumError("no"), "refused"),
        (FileNotFoundError(2, "gone"), "refused"),
        (Transient("busy"), "transient"),
        (wrapped(OSError(EIO, "I/O error")), "transient"),
        (wrapped(wrapped(TimeoutError("slow"))), "transient"),
        (wrapped(OSError("Empty or corrupt FITS file")), "unknown"),
        (wrapped(MemoryError()), "memory"),
        (ZeroDivisionError(), "unknown"),
        (SystemExit(3), "unknown"),
    ],
)
def test_an_error_is_dealt_with_by_what_caused_it(error: BaseException, known: str) -> None:
    assert quanta.error_class(error) == known


HOLD = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4
from cluster.batch import quanta
from cluster.batch.request import Needs
from cluster.proc import resident_mb
quanta._opened = SimpleNamespace(cache_info=lambda: SimpleNamespace(currsize=1))
job = quanta.QuantumJob("", "", "", uuid4(), b"", Needs(memory_mb=450), Path(sys.argv[1]))
rows = [bytearray(100_000) for _ in range(5000)]
last = rows[-1]
del rows
held = resident_mb(os.getpid())
quanta._make_room(job)
print(held > 500, resident_mb(os.getpid()) < 450, flush=True)
kept = [bytearray(100_000) for _ in range(5000)]
quanta._make_room(job)
"""


def test_what_earlier_quanta_took_is_given_back_and_a_process_that_cannot_ends(tmp_path: Path) -> None:
    import cluster  # noqa: F401, PLC0415 - it sets what glibc does with freed memory

    words = tmp_path / "words"
    ended = subprocess.run([sys.executable, "-c", HOLD, str(words)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (os.EX_SOFTWARE, "True True\n"), ended.stderr
    assert words.read_text().startswith("died its process still held")


# --- the folder of a run


def folder(tmp_path: Path) -> RunFolder:
    request = BatchRequest(butler=tmp_path, pipeline="p.yaml", inputs=("i",), output="o")
    run = RunFolder.make(tmp_path / "run", request)
    run.name_file.write_text("o/now")
    return run


def test_a_run_has_one_coordinator_at_a_time_for_as_long_as_that_lives(tmp_path: Path) -> None:
    run = folder(tmp_path)
    assert not run.coordinated()
    claim = run.claim()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[claim])
    os.close(claim)
    assert run.coordinated()
    with pytest.raises(BadData, match="has a coordinator already"):
        run.claim()
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
    run.hand_over(os.getpid())  # its process id is somebody else's now
    assert not run.coordinated()
    os.close(run.claim())


def test_a_run_that_was_not_submitted_to_its_end_is_none(tmp_path: Path) -> None:
    run = folder(tmp_path)
    assert [each.path for each in run_folders(tmp_path)] == [run.path]
    run.name_file.unlink()
    assert not list(run_folders(tmp_path))
    with pytest.raises(BadData, match="there is no batch run"):
        RunFolder.open(run.path)


def test_words_of_jobs_with_slashes_in_their_names_lie_in_the_runs_folder(tmp_path: Path) -> None:
    run = folder(tmp_path)
    assert run.last_words("group/a b", 2).parent == run.path


def test_quanta_of_a_visit_come_one_after_another_and_what_has_none_first() -> None:
    universe, work = DimensionUniverse(), QuantaWork.__new__(QuantaWork)
    warp = {"instrument": "LSSTCam", "skymap": "s", "tract": 1}
    names = [warp | {"patch": patch, "visit": visit} for patch in (1, 2) for visit in (7, 3)]
    names += [{"skymap": "s", "tract": 1, "patch": 1, "band": "r"}]
    work._quanta = {
        uuid4(): SimpleNamespace(dataId=DataCoordinate.standardize(name, universe=universe)) for name in names
    }  # type: ignore[assignment]
    first = sorted(work._quanta, key=work.priority, reverse=True)
    assert [work._quanta[key].dataId.mapping.get("visit") for key in first] == [None, 3, 3, 7, 7]
