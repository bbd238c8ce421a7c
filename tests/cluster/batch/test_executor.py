import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import ray
from lsst.daf.butler import Butler

from backbone.butler import ButlerArchive
from cluster.batch import graph
from cluster.batch.executor import Executor
from cluster.batch.quanta_work import QuantaWork
from cluster.batch.request import BatchRequest, Needs
from cluster.batch.run_folder import CANCELED, DONE, FAILED, Progress, RunFolder
from schemas.clock import REAL_TIME
from schemas.errors import BadData
from schemas.instrument import camera

FOREIGN = Path(__file__).parent / "foreign"
DETECTORS, RUN = 12, "u/tester/now"
SUM = sum(range(DETECTORS))

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    ButlerArchive.create(folder).register_camera(camera("LSSTCam"))
    return folder


@pytest.fixture
def make(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Maker":
    monkeypatch.syspath_prepend(str(FOREIGN))
    return Maker(_made, tmp_path, f"{RUN}/{uuid4().hex}")


class Maker:
    """Runs of the foreign pipeline."""

    def __init__(self, butler: Path, folder: Path, run: str) -> None:
        self.butler, self.folder, self.run = butler, folder, run

    def asked(self, *settings: str, needs: Needs | None = None, **changed: object) -> BatchRequest:
        return BatchRequest(
            butler=self.butler, pipeline=str(FOREIGN / "numbers.yaml"), inputs=("LSSTCam/defaults",), output="u/tester",
            where=f"instrument='LSSTCam' AND detector < {DETECTORS}", settings=settings,
            needs={"number": needs} if needs else {}, python_path=(str(FOREIGN),),
        ).model_copy(update=changed)  # fmt: skip

    def submitted(self, request: BatchRequest) -> RunFolder:
        folder = RunFolder.make(self.folder / "run", request)
        graph.build(folder, self.run)
        folder.name_file.write_text(self.run)
        return folder

    def executor(self, folder: RunFolder, slots: int = 2) -> Executor[UUID]:
        butler = Butler.from_config(str(self.butler), run=self.run, writeable=True)
        return Executor(folder, QuantaWork(folder, butler, self.run), lambda: slots, REAL_TIME)

    def ran(self, *settings: str, needs: Needs | None = None) -> Progress:
        return self.executor(self.submitted(self.asked(*settings, needs=needs))).run()

    def value(self, dataset_type: str, **data_id: int) -> int:
        butler = Butler.from_config(str(self.butler), collections=self.run)
        return butler.get(dataset_type, instrument="LSSTCam", **data_id)["value"]

    def detectors(self) -> set[int]:
        butler = Butler.from_config(str(self.butler), collections=self.run)
        return {int(ref.dataId["detector"]) for ref in butler.query_datasets("number", explain=False)}


def test_a_foreign_pipeline_runs_unchanged_with_its_configuration(make: Maker) -> None:
    progress = make.ran("number:factor=3")
    assert progress.state == DONE
    assert progress.steps["number"].done == DETECTORS
    assert make.value("sum") == 3 * SUM
    assert make.value("number", detector=5) == 15


def test_a_process_executes_many_quanta(make: Maker) -> None:
    make.ran()
    butler = Butler.from_config(str(make.butler), collections=make.run)
    pids = {butler.get("number", instrument="LSSTCam", detector=k)["pid"] for k in range(DETECTORS)}
    assert len(pids) <= 3


def test_logs_and_metadata_of_quanta_are_kept(make: Maker) -> None:
    make.ran()
    butler = Butler.from_config(str(make.butler), collections=make.run)
    assert butler.get("number_log", instrument="LSSTCam", detector=3)
    assert butler.get("sum_metadata", instrument="LSSTCam")["quantum"]


@pytest.mark.parametrize(
    ("misfortune", "error", "attempts", "said"),
    [
        ("raises", "unknown", 2, "ZeroDivisionError: seven is unlucky"),
        ("refuses", "refused", 1, "seven is not for us"),
    ],
)
def test_a_quantum_that_fails_is_named_and_the_rest_goes_on(
    make: Maker, misfortune: str, error: str, attempts: int, said: str
) -> None:
    progress = make.ran(f"number:misfortune={misfortune}")
    assert progress.state == FAILED
    (failure,) = progress.failures
    assert (failure.label, failure.error, failure.attempts) == ("number", error, attempts)
    assert "detector: 7" in failure.data_id
    assert said in failure.message
    assert progress.steps["sum"].blocked == 1
    assert make.detectors() == set(range(DETECTORS)) - {7}


@pytest.mark.parametrize(
    ("misfortune", "needs"),
    [
        ("dies", Needs()),
        ("hangs", Needs(deadline_s=8.0)),
        ("swells", Needs(memory_mb=500)),
    ],
)
def test_what_kills_a_process_once_is_tried_again(make: Maker, misfortune: str, needs: Needs) -> None:
    progress = make.ran(f"number:misfortune={misfortune}", f"number:once={make.folder / 'was'}", needs=needs)
    assert (progress.state, progress.retried) == (DONE, 1)
    assert make.value("sum") == 10 * SUM


def test_a_quantum_that_takes_more_memory_than_double_what_it_asked_for_is_named(make: Maker) -> None:
    progress = make.ran("number:misfortune=swells", needs=Needs(memory_mb=300))
    (failure,) = progress.failures
    assert (failure.error, failure.attempts) == ("memory", 2)
    assert "asked for 600" in failure.message


def test_a_canceled_run_goes_on_where_it_was(make: Maker) -> None:
    folder = make.submitted(make.asked())
    first = make.executor(folder, slots=1)

    def canceled_in_the_midst() -> int:
        if first.progress.steps["number"].done >= 3:
            folder.cancel()
        return 1

    first._slots = canceled_in_the_midst
    assert first.run().state == CANCELED
    before = make.detectors()
    assert 3 <= len(before) < DETECTORS
    os.close(folder.claim())
    progress = make.executor(folder).run()
    assert progress.state == DONE
    assert progress.steps["number"].kept == len(before)
    assert progress.steps["number"].done == DETECTORS - len(before)
    assert make.value("sum") == 10 * SUM


def test_what_is_done_is_not_done_again(make: Maker) -> None:
    folder = make.submitted(make.asked())
    make.executor(folder).run()
    progress = make.executor(folder).run()
    assert (progress.steps["number"].kept, progress.steps["number"].done) == (DETECTORS, 0)


def test_without_slots_nothing_runs(make: Maker) -> None:
    folder = make.submitted(make.asked())
    executor = make.executor(folder, slots=0)
    calls = []

    def canceled_at_the_third() -> int:
        calls.append(0)
        if len(calls) == 3:
            folder.cancel()
        return 0

    executor._slots = canceled_at_the_third
    progress = executor.run()
    assert progress.state == CANCELED
    assert progress.steps["number"].done == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"settings": ("number:faktor=3",)}, "faktor"),
        ({"settings": ("nombre:factor=3",)}, "nombre"),
        ({"settings": ("number.factor=3",)}, "label:option=value"),
        ({"inputs": ("LSSTCam/nothing",)}, "LSSTCam/nothing"),
        ({"where": "instrument='LSSTCam' AND detector < 0"}, "no quanta"),
        ({"where": "instrument='LSSTCam' AND detektor = 3"}, "detektor"),
        ({"pipeline": "/nowhere/p.yaml"}, "/nowhere/p.yaml"),
        ({"pipeline": "misspelt.yaml"}, "number: 'confg' is neither class nor config"),
        ({"pipeline": "falling.yaml"}, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("misspelt.yaml").write_text(
        "description: d\ntasks: {number: {class: third_party.NumberTask, confg: {factor: 3}}}\n"
    )
    Path("falling.yaml").write_text("description: falls\ntasks: {falls: falling.Step}\n")
    Path("falling.py").write_text("1 / 0\n")
    with pytest.raises(BadData, match=said):
        make.submitted(make.asked(**changed))
