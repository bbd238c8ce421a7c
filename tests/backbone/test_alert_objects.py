"""All alerts of an object, over several nights."""

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backbone import alert_objects
from backbone.alert_archive import AlertArchive
from backbone.alert_objects import AlertsOfObjects, KeptAlert
from schemas.errors import BadData, Transient
from tests.backbone.kept_alerts import SCHEMA, VISIT, ids_of, keys_of, records

N = 5
NEXT_NIGHT = VISIT + 100_000


@pytest.fixture
def archive(tmp_path: Path) -> AlertArchive:
    return AlertArchive(tmp_path, SCHEMA)


@pytest.fixture
def objects(archive: AlertArchive) -> AlertsOfObjects:
    return AlertsOfObjects(archive)


def write(archive: AlertArchive, visit: int, detector: int = 94, *, cutout: bytes = b"") -> KeptAlert:
    """Alerts of objects 1000 to 1003 and 77; returns that of 1002."""
    numbers = ids_of(N, visit, detector)
    path = archive.write(visit, detector, records(N, visit, detector, cutout=cutout), numbers, keys_of(N))
    return KeptAlert(int(numbers[2]), path)


def at_rest(archive: AlertArchive) -> None:
    """The folders were changed last an hour ago."""
    for folder in archive.folder.glob("**/"):
        an_hour_ago = folder.stat().st_mtime - 3600.0
        os.utime(folder, (an_hour_ago, an_hour_ago))


def test_alerts_of_an_object_come_from_all_nights_in_the_order_of_time(
    archive: AlertArchive, objects: AlertsOfObjects
) -> None:
    places = [(NEXT_NIGHT, 3), (VISIT + 2, 94), (VISIT, 94), (VISIT, 3)]
    written = [write(archive, visit, detector) for visit, detector in places]
    assert objects.find(1002) == sorted(written, key=lambda alert: alert.dia_source_id)
    assert len(objects.find(77)) == len(places)
    assert objects.find(5) == []
    assert [archive.get(a.dia_source_id, a.path) for a in objects.find(1002)[:1]] == [records(N, VISIT, 3)[2]]


def test_an_empty_archive_has_no_alerts(objects: AlertsOfObjects) -> None:
    assert objects.find(1002) == []


@pytest.mark.parametrize("resting", [True, False])
def test_what_came_since_is_found_too(archive: AlertArchive, objects: AlertsOfObjects, *, resting: bool) -> None:
    expected = [write(archive, VISIT, 3)]
    for detector in (4, 5):
        if resting:
            at_rest(archive)
        assert objects.find(1002) == expected
        expected.append(write(archive, VISIT, detector))
    assert objects.find(1002) == expected


def test_files_of_visits_at_rest_are_not_read_again(
    archive: AlertArchive, objects: AlertsOfObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [write(archive, VISIT, 3), write(archive, VISIT, 4)]
    at_rest(archive)
    assert objects.find(1002) == expected
    monkeypatch.setattr(archive, "files_in", None)
    monkeypatch.setattr(archive, "index", None)
    assert AlertsOfObjects(archive).find(1002) == expected


def test_several_may_ask_for_the_first_time_at_once(archive: AlertArchive) -> None:
    expected = [write(archive, VISIT, detector) for detector in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: AlertsOfObjects(archive).find(1002), range(8)))
    assert answers == [expected] * 8


def test_a_result_made_twice_is_there_with_both_files(archive: AlertArchive, objects: AlertsOfObjects) -> None:
    written = [write(archive, VISIT), write(archive, VISIT, cutout=b"made again")]
    assert objects.find(1002) == sorted(written, key=lambda alert: alert.path)


def test_a_file_that_was_removed_is_left_out(archive: AlertArchive, objects: AlertsOfObjects) -> None:
    gone, kept = write(archive, VISIT, 3), write(archive, VISIT, 4)
    assert objects.find(1002) == [gone, kept]
    (archive.folder / gone.path).unlink()
    assert objects.find(1002) == [kept]


def test_a_file_without_its_index_is_found(archive: AlertArchive, objects: AlertsOfObjects) -> None:
    written = write(archive, VISIT)
    (archive.folder / written.path).with_suffix(".index").unlink()
    assert objects.find(1002) == [written]


def test_a_lost_index_of_a_night_is_made_anew(archive: AlertArchive, objects: AlertsOfObjects) -> None:
    expected = [write(archive, VISIT), write(archive, NEXT_NIGHT)]
    at_rest(archive)
    assert objects.find(1002) == expected
    (archive.folder / "20260705.objects").unlink()
    assert objects.find(1002) == expected


def test_a_corrupt_index_of_a_night_is_refused_by_name(archive: AlertArchive, objects: AlertsOfObjects) -> None:
    write(archive, VISIT)
    path = archive.folder / "20260705.objects"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(BadData, match=f"{path}: the index of objects is corrupt"):
        objects.find(1002)


def test_an_index_that_another_process_holds_is_waited_for_until_the_deadline(
    archive: AlertArchive, objects: AlertsOfObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [write(archive, VISIT)]
    assert objects.find(1002) == expected
    monkeypatch.setattr(alert_objects, "BUSY_S", 0.1)
    holder = sqlite3.connect(archive.folder / "20260705.objects", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Transient, match=r"20260705.objects: .*database is locked"):
        objects.find(1002)
    holder.close()
    assert objects.find(1002) == expected
