"""Catch-up with the camera's own server, in this process, and a real Data Butler repository."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from actors import catch_up
from actors.camera_reader import raw_id
from actors.catch_up import CatchUp
from backbone.butler import ButlerArchive
from backbone.daq_client import FlightDaq, Held
from backbone.journal import MemoryJournal
from schemas.clock import ManualClock
from schemas.events import (
    CatchUpDue,
    CaughtUp,
    DetectorReadOut,
    Event,
    NextVisit,
    RawArchived,
    RawNotArchived,
    ReadoutEnded,
)
from schemas.image import Observation, Raw
from schemas.instrument import camera
from tests.simulators.camera.quick_daq import QuickDaq, pixels

LSSTCAM = camera("LSSTCam")
NOW = 1_783_300_000.0
LIVE = (93, 94)


def exposed(snap: int = 0, visit: int = 2026070500001, physical_filter: str = "r_57") -> Observation:
    started = NOW - 1000.0 + 17.0 * snap
    return Observation(
        instrument="LSSTCam", group=f"g{visit % 100_000}", visit=visit, exposure=visit + snap, snap=snap, n_snaps=2,
        image_name=f"MC_O_20260705_{visit % 100_000 + snap:06d}", physical_filter=physical_filter,
        band=physical_filter[0], ra=150.0, dec=2.0, rotation=30.0, exposure_time=15.0, started=started,
        readout_ended=started + 17.0,
    )  # fmt: skip


def announced(seen: Observation, **changes: object) -> NextVisit:
    fields = {"instrument": "LSSTCam", "filters": seen.physical_filter, "survey": "told"} | changes
    return NextVisit(
        group=seen.group, ra=seen.ra, dec=seen.dec, rotation=seen.rotation, start_time=seen.started, duration=34.0,
        n_images=2, **fields,
    )  # fmt: skip


def readout(seen: Observation) -> ReadoutEnded:
    return ReadoutEnded(
        group=seen.group, instrument="LSSTCam", exposure=seen.exposure, image_name=seen.image_name, snap=seen.snap,
        n_snaps=2, exposure_time=15.0, started=seen.started, readout_ended=seen.readout_ended,
    )  # fmt: skip


@dataclass
class Place:
    """A camera, an archive and a journal; `catch_up` makes a new actor, `run` has it work until nothing is left."""

    server: QuickDaq
    archive: ButlerArchive
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    number: int = 0

    def catch_up(self) -> CatchUp:
        daq = FlightDaq(self.server.address)
        return CatchUp(camera=LSSTCAM, live=LIVE, daq=daq, archive=self.archive, chronicle=self.journal)

    async def tell(self, *facts: Event) -> None:
        await self.journal.append(facts, {}, NOW)

    async def once(self, actor: CatchUp, *, begins: bool = True) -> tuple[list[Event], CaughtUp]:
        """The facts of one `CatchUpDue`, journalled, and the answer."""
        due = CatchUpDue(at=NOW, number=self.number, occasion="a test", begins=begins)
        self.number += 1
        *facts, answer = await actor.react(due)
        assert isinstance(answer, CaughtUp)
        assert (answer.at, answer.number) == (due.at, due.number)
        await self.tell(*facts)
        return facts, answer

    async def round(self) -> list[Event]:
        actor = self.catch_up()
        facts, answer = await self.once(actor)
        while answer.left:
            more, answer = await self.once(actor, begins=False)
            facts += more
        return facts

    def kept(self, seen: Observation, detector: int) -> Raw:
        raw: Raw = self.archive.get(raw_id(seen, detector))
        return raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("catch-up")


@pytest.fixture(scope="module")
def archive(folder: Path) -> ButlerArchive:
    archive = ButlerArchive.create(folder / "butler")
    archive.register_camera(LSSTCAM)
    return archive


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QuickDaq]:
    server = QuickDaq(tmp_path, LIVE, ManualClock(NOW))
    yield server
    server.close()


@pytest.fixture
def place(server: QuickDaq, archive: ButlerArchive) -> Place:
    return Place(server, archive)


_visits = iter(range(2026070500101, 2026070599999, 2))


@pytest.fixture
def seen() -> Observation:
    """An exposure of a visit of its own: the archive is the module's."""
    return exposed(visit=next(_visits))


def written_at(place: Place, seen: Observation) -> int:
    return Path(urlsplit(place.archive.uri(raw_id(seen, 94))).path).stat().st_mtime_ns


def archived(facts: Sequence[Event]) -> list[tuple[int | None, int | None]]:
    return [(f.raw.exposure, f.raw.detector) for f in facts if isinstance(f, RawArchived)]


async def test_what_was_missed_is_archived_bit_for_bit_and_told_with_what_is_known_of_it(
    place: Place, seen: Observation
) -> None:
    place.server.expose(seen)
    await place.tell(announced(seen), readout(seen))
    first, second = await place.round()
    assert isinstance(first, RawArchived)
    assert isinstance(second, RawArchived)
    assert (first.raw, second.raw) == (raw_id(seen, 93), raw_id(seen, 94))
    assert (first.observation, first.caught_up, first.described_by) == (
        replace(seen, survey="told"),
        True,
        "observatory",
    )
    kept = place.kept(seen, 93)
    np.testing.assert_array_equal(kept.segments, pixels(seen.exposure, 93))
    assert kept.sha256 == first.sha256
    assert first.uri == place.archive.uri(first.raw)


async def test_twice_changes_nothing(place: Place, seen: Observation) -> None:
    place.server.expose(seen, (94,))
    (told,) = await place.round()
    written = written_at(place, seen)
    assert await place.round() == []
    again = Place(place.server, place.archive)  # which remembers nothing
    assert await again.round() == [told]
    assert written_at(place, seen) == written


async def test_one_raw_is_fetched_at_a_time_and_the_answer_counts_the_others(place: Place, seen: Observation) -> None:
    place.server.expose(seen)
    actor = place.catch_up()
    (_,), answer = await place.once(actor)
    assert (answer.left, answer.failed, answer.reason) == (1, 0, "")
    (_,), answer = await place.once(actor, begins=False)
    assert answer.left == 0


async def test_an_exposure_of_which_nothing_was_told_is_described_by_the_camera(
    place: Place, seen: Observation
) -> None:
    place.server.expose(seen, (94,))
    (first,) = await place.round()
    assert isinstance(first, RawArchived)
    assert (first.observation, first.described_by, first.group) == (seen, "camera", seen.group)


@pytest.mark.parametrize("change", [{"filters": "H_alpha"}, {"instrument": "HSC"}])
async def test_a_refused_visit_s_raws_are_archived_with_what_the_camera_says(
    place: Place, seen: Observation, change: dict[str, str]
) -> None:
    place.server.expose(seen, (94,))
    await place.tell(announced(seen, **change), readout(seen))
    (first,) = await place.round()
    assert isinstance(first, RawArchived)
    assert (first.observation.physical_filter, first.described_by) == ("r_57", "camera")


async def test_what_is_on_its_way_or_not_read_out_or_not_live_is_left_alone(place: Place, seen: Observation) -> None:
    late = replace(exposed(visit=next(_visits)), readout_ended=NOW + 1.0)
    place.server.expose(seen, (93, 94, 95))
    place.server.expose(late)
    await place.tell(DetectorReadOut(group=seen.group, detector=93, observation=seen))
    assert archived(await place.round()) == [(seen.exposure, 94)]


async def test_what_the_archiver_gave_up_is_on_its_way_no_more(place: Place, seen: Observation) -> None:
    place.server.expose(seen, (93,))
    await place.tell(DetectorReadOut(group=seen.group, detector=93, observation=seen))
    await place.tell(RawNotArchived(group=seen.group, raw=raw_id(seen, 93), reason="the disk is full"))
    assert archived(await place.round()) == [(seen.exposure, 93)]


@pytest.mark.parametrize(
    ("fault", "named"), [("short", "8 of 16 amplifiers"), ("corrupt", "SHA-256"), ("silent", "no pixels")]
)
async def test_pixels_that_cannot_be_used_are_named_and_fetched_when_they_can(
    place: Place, seen: Observation, fault: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_up, "FETCH_DEADLINE_S", 1.0)
    place.server.expose(seen, (93,))
    place.server.play({93: fault})
    (missing,) = await place.round()
    assert isinstance(missing, RawNotArchived)
    assert missing.raw == raw_id(seen, 93)
    assert named in missing.reason
    monkeypatch.undo()
    place.server.play({})
    assert archived(await place.round()) == [(seen.exposure, 93)]


async def test_a_detector_that_sends_nothing_keeps_no_other_waiting(place: Place, seen: Observation) -> None:
    place.server.expose(seen, (93,))
    place.server.expose(exposed(visit=next(_visits)))
    place.server.play({93: "short"})
    facts = await place.round()
    assert [type(fact) for fact in facts] == [RawNotArchived, RawArchived, RawNotArchived]


async def test_a_camera_that_does_not_answer_is_the_answer_and_what_only_it_has_is_named(
    place: Place, seen: Observation
) -> None:
    place.server.expose(seen)
    await place.tell(readout(seen))
    place.server.close()
    facts, answer = await place.once(place.catch_up())
    assert {f.raw.detector for f in facts if isinstance(f, RawNotArchived)} == {93, 94}
    assert "does not answer" in answer.reason
    assert (await place.once(place.catch_up()))[0] == []  # named once


async def test_a_readout_that_the_buffer_does_not_hold_is_named_as_lost(place: Place, seen: Observation) -> None:
    await place.tell(announced(seen), readout(seen))
    facts = await place.round()
    assert [f.raw.detector for f in facts if isinstance(f, RawNotArchived)] == [93, 94]
    assert all("does not hold it" in f.reason for f in facts if isinstance(f, RawNotArchived))
    assert await place.round() == []


async def test_what_an_actor_kept_and_did_not_live_to_tell_the_next_one_tells(place: Place, seen: Observation) -> None:
    raw = Raw.of(seen, 94, pixels(seen.exposure, 94))
    place.server.expose(seen, (94,))
    place.archive.put_raw(raw)
    place.server.play({94: "short"})  # it is not fetched again
    (told,) = await place.round()
    assert isinstance(told, RawArchived)
    assert told.sha256 == raw.sha256


async def test_a_new_actor_looks_by_itself(place: Place, seen: Observation) -> None:
    place.server.expose(seen)
    await place.once(place.catch_up())
    assert archived((await place.once(place.catch_up(), begins=False))[0]) == [(seen.exposure, 94)]


async def test_what_the_disk_made_of_a_raw_is_found_when_it_is_read_back(
    place: Place, seen: Observation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put_badly(raw: Raw) -> tuple[str, str]:
        uri, sha256 = put_raw(raw)
        path = Path(urlsplit(uri).path)
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 0xFF
        path.write_bytes(damaged)
        return uri, sha256

    put_raw = place.archive.put_raw
    monkeypatch.setattr(place.archive, "put_raw", put_badly)
    place.server.expose(seen, (94,))
    (missing,) = await place.round()
    assert isinstance(missing, RawNotArchived)
    assert str(raw_id(seen, 94)) in missing.reason


async def test_the_catalogue_tells_all_that_the_camera_knows(place: Place, seen: Observation) -> None:
    place.server.expose(seen)
    assert await FlightDaq(place.server.address).held() == [Held(seen, (93, 94))]
