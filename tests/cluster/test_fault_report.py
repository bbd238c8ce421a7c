"""What the report says of what was made to go wrong."""

from pathlib import Path

from access.report.model import FaultRow
from cluster.fault_injection import Injected, Notes
from cluster.fault_report import fault_rows, untrue
from cluster.settings import Settings
from simulators.faults import Camera, Freeze, Kill, Planned, Rush, When, dump
from simulators.ocs.schedule import load_schedule


def test_each_fault_has_one_row_in_the_order_of_their_visits(tmp_path: Path) -> None:
    settings = Settings(output=tmp_path, detectors=(94,))
    at = When(visit=2, fact="RawReady")
    faults = [
        Planned("hang", Freeze(process="broker", seconds=60.0, at=at)),
        Planned("cut", Camera(what="cut", visit=1)),
        Planned("kill", Kill(process="gcs", at=at)),
        Planned("rush", Rush()),
        Planned("kill", Kill(process="driver", at=at)),
    ]
    dump(settings.fault_file, faults)
    notes = Notes(settings.injected_file)
    begun = Injected(number=0, name="hang", state="begun", what="freeze broker", at=10.0, until=70.0)
    notes.add(begun)
    notes.add(Injected(number=2, name="kill", state="missed", what="kill gcs", at=20.0, reason="no gcs_server runs"))
    notes.add(begun.model_copy(update={"state": "ended", "at": 70.5}))
    assert fault_rows(settings) == [
        FaultRow(name="rush", what="rush", state="told"),
        FaultRow(name="cut", what="camera cut", state="told", visit=1),
        FaultRow(name="hang", what="freeze broker", state="ended", visit=2, at=10.0, until=70.5),
        FaultRow(name="kill", what="kill gcs", state="missed", visit=2, at=20.0, reason="no gcs_server runs"),
        FaultRow(name="kill", what="kill driver", state="missed", visit=2, reason="nobody tried"),
    ]


def test_a_burst_is_not_held_to_a_truth_that_does_not_have_it(tmp_path: Path) -> None:
    settings = Settings(output=tmp_path, detectors=(93, 94))
    plan = load_schedule("own", n=3, cadence=37.0, n_snaps=2, seed=1, instrument="LSSTCam")
    faults = [Camera(what="burst", visit=2, detector=94), Camera(what="dark", visit=3)]
    dump(settings.fault_file, [Planned("bad", fault) for fault in faults])
    first, second = (plan[1].observation(snap).exposure for snap in (0, 1))
    assert plan[1].observation(1).visit == first
    assert untrue(plan, settings) == {(first, 94), (second, 94)}
