"""What a coordinator makes of what it sees, without Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import pytest
import ray

from cluster.batch.executor import END_S, Executor, Running, Waiting
from cluster.batch.request import BatchRequest, Needs
from cluster.batch.run_folder import RunFolder, Steps
from cluster.batch.work import Made
from schemas.clock import ManualClock

NEEDS = Needs(deadline_s=10.0)


class Works:
    """Units of work that nobody executes."""

    interrupted, environment, run = False, {}, "r"

    def __init__(self, labels: dict[str, str], cpus: int = 1) -> None:
        self._labels, self._cpus = labels, cpus
        self.asked_to_keep = 0

    @property
    def stages(self) -> "list[nx.DiGraph[str]]":
        graph = nx.DiGraph()
        graph.add_nodes_from(self._labels)
        return [graph]

    @property
    def labels(self) -> list[str]:
        return sorted(set(self._labels.values()))

    @staticmethod
    def execute(_given: object) -> Made:
        raise NotImplementedError

    def label(self, key: str) -> str:
        return self._labels[key]

    def needs(self, _key: str) -> Needs:
        return NEEDS.model_copy(update={"cpus": self._cpus})

    def priority(self, _key: str) -> int:
        return 0

    def keep_due(self) -> None:
        self.asked_to_keep += 1


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    request = BatchRequest(butler=tmp_path, pipeline="p.yaml", inputs=("i",), output="o")
    return RunFolder.make(tmp_path / "run", request)


def executor(folder: RunFolder, labels: dict[str, str], slots: int = 1, cpus: int = 1) -> Any:
    return Executor(folder, Works(labels, cpus), lambda: slots, ManualClock(0.0))  # type: ignore[arg-type]


def test_what_waits_for_room_has_not_begun_and_does_not_hang(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setattr(ray, "cancel", lambda ref, **_: killed.append(ref))
    run = executor(folder, {"a": "step"})
    waiting = Waiting("a", 1, 0.0, NEEDS)
    run._running = {"ref": Running(waiting)}
    run._kill_hanging(2.0 * NEEDS.deadline_s + END_S + 1.0)
    assert not killed
    folder.last_words("a", 1).touch()
    run._kill_hanging(2.0 * NEEDS.deadline_s + END_S)
    assert not killed
    run._kill_hanging(1.0)
    assert killed == ["ref"]


@pytest.mark.parametrize(("words", "error"), [("", "died"), ("memory used 9 MB", "memory")])
def test_a_process_that_died_before_it_said_why_has_failed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, words: str, error: str
) -> None:
    def dead(_ref: object) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(ray, "get", dead)
    folder.last_words("a", 1).write_text(words)
    made = executor(folder, {"a": "step"})._made("ref", Running(Waiting("a", 1, 0.0, NEEDS)))
    assert made.error == error
    assert not folder.last_words("a", 1).exists()


@pytest.mark.parametrize(
    ("slots", "cpus", "left"),
    [
        (4, 1, 3 * 10.0 + 60.0),  # 12 of the first in three rounds, then one of the second
        (16, 1, 10.0 + 60.0),
        (4, 4, 12 * 10.0 + 60.0),
    ],
)
def test_the_end_is_estimated_by_rounds_of_each_step(folder: RunFolder, slots: int, cpus: int, left: float) -> None:
    labels = {f"one-{k}": "one" for k in range(20)} | {"two-0": "two", "two-1": "two"}
    run = executor(folder, labels, slots, cpus)
    run.progress.steps = {
        "one": Steps(total=20, done=8, seconds=80.0),
        "two": Steps(total=2, done=1, seconds=60.0),
    }
    assert run._estimate(1000.0) == pytest.approx(1000.0 + left)


def test_nothing_more_is_looked_at_when_all_slots_are_taken(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"u{k}" for k in range(1000)]
    run = executor(folder, dict.fromkeys(names, "step"), slots=3)
    run._queue = [Waiting(name, 1, 0.0, NEEDS) for name in names]
    handed: list[str] = []
    monkeypatch.setattr(run, "_hand_over", lambda waiting: handed.append(waiting.id))
    run._start()
    assert handed == names[:3]
    assert [waiting.id for waiting in run._queue] == names[3:]
    assert run.wanted() == len(names) - 3


def test_what_is_not_due_yet_keeps_its_place(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = executor(folder, {"a": "step", "b": "step"}, slots=1)
    run._queue = [Waiting("a", 2, 1e12, NEEDS), Waiting("b", 1, 0.0, NEEDS)]
    handed = SimpleNamespace(ids=[])
    monkeypatch.setattr(run, "_hand_over", lambda waiting: handed.ids.append(waiting.id))
    run._start()
    assert handed.ids == ["b"]
    assert [waiting.id for waiting in run._queue] == ["a"]


def test_what_has_ended_is_written_down_once_a_second_though_nothing_ends(folder: RunFolder) -> None:
    works, clock = Works({"a": "step"}), ManualClock(100.0)
    run: Any = Executor(folder, works, lambda: 1, clock)  # type: ignore[arg-type]
    for _ in range(3):
        run._tell()
    assert works.asked_to_keep == 1
    clock.set_to(102.0)
    run._tell()
    assert works.asked_to_keep == 2
    assert folder.progress().updated == clock.now()
