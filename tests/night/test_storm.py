"""A short storm, played for real: what went wrong cost no raw and no alert, as others count than the night itself.

The raws are counted by what the simulator put into each and read back from the Butler; the alerts by what the witness,
a consumer in a process of its own, noted, and by what the L1 database holds once the night's processes are gone.
"""

import asyncio
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

from backbone.butler import ButlerArchive
from cluster import witness
from cluster.services import EmbeddedPostgres
from schemas.identity import DatasetId
from tests.night.conftest import Night, begun, command

pytestmark = [pytest.mark.night, pytest.mark.ray, pytest.mark.timeout(1500)]

VISITS = 3
STORMS = {9042: ["kill-associator-after-commit", "kill-broker", "kill-driver"]}
"""Seed -> what is drawn: without what takes minutes by itself. `python -m bench.storm` plays others, for longer."""
DEADLINE_S = 1200.0
DETECTOR = 94

Committed = dict[int, float]
"""diaSourceId of an alert -> when the broker acknowledged it, TAI s; NaN if it has not."""


@dataclass
class Storm:
    """What a storm left behind. `stored`: every diaSourceId; `committed`: those that have an alert."""

    night: Night
    faults: list[str]
    stored: set[int] = field(default_factory=set)
    committed: Committed = field(default_factory=dict)

    async def read(self, dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        sources = await connection.fetch('SELECT "diaSourceId" FROM "DiaSource"')
        alerts = await connection.fetch(
            "SELECT a.id, a.at FROM visit_detector, unnest(alert_ids, acknowledged_at) AS a (id, at)"
        )
        await connection.close()
        self.stored = {row[0] for row in sources}
        assert len(alerts) == len({row[0] for row in alerts})
        self.committed = dict(map(tuple, alerts))


@pytest.fixture(scope="module", params=STORMS)
def storm(request: pytest.FixtureRequest, earlier: Path, module_folder: Path) -> Storm:
    seed: int = request.param
    output = begun(earlier, module_folder / str(seed))
    played = ("--visits", str(VISITS), "--fault", f"storm:{seed}", "--workers", "1", "--speed", "2")
    done = subprocess.run(
        command(output, *played, "--metrics-port", "0"), capture_output=True, text=True, timeout=DEADLINE_S,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    storm = Storm(Night(output, done.returncode, done.stdout + done.stderr), STORMS[seed])
    with EmbeddedPostgres(output / "postgres") as server:
        asyncio.run(storm.read(server.url))
    return storm


def test_the_night_ends_well_although_all_went_wrong_that_the_seed_has(storm: Storm) -> None:
    assert storm.night.code == 0, storm.night.screen
    told = storm.night.report["faults"]
    assert sorted(fault["name"] for fault in told) == sorted(storm.faults)
    assert [fault for fault in told if fault["state"] == "missed"] == []


def test_every_raw_that_the_camera_took_is_in_the_archive(storm: Storm) -> None:
    taken = [file.stem for file in (storm.night.output / "truth").glob(f"*-{DETECTOR:03d}.parquet")]
    archive = ButlerArchive.open(storm.night.output / "butler")
    for name in taken:
        exposure, detector = map(int, name.split("-"))
        assert archive.get(DatasetId.of_raw("LSSTCam", exposure, detector)).sha256
    balance = storm.night.report["balance"]
    assert len(taken) == balance["raws_taken"] == balance["raws_archived"] == 2 * VISITS


def test_a_consumer_saw_every_alert_that_the_database_has_and_no_other(storm: Storm) -> None:
    notes = witness.read(storm.night.output / "witness.jsonl")
    contents = {(note.dia_source_id, note.sha256) for note in notes}
    seen = {number for number, _ in contents}
    assert len(contents) == len(seen)  # whatever came twice had the same bytes
    assert seen == set(storm.committed) <= storm.stored
    assert all(at > 0.0 for at in storm.committed.values())  # NaN if it were still owed
    balance = storm.night.report["balance"]
    assert len(seen) == balance["alerts_made"] == balance["alerts_acknowledged"] > 10
