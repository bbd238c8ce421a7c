"""Single alerts out of the archive: by the index beside each file, and without."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backbone import alert_index
from backbone.alert_archive import AlertArchive
from schemas.errors import BadData, Transient
from schemas.identity import dia_source_id
from tests.backbone.full_disk import files_of_at_most
from tests.backbone.kept_alerts import DETECTOR, SCHEMA, VISIT, ids_of, keys_of, records

ROOT = Path(__file__).parents[2]
N = 5


@pytest.fixture
def archive(tmp_path: Path) -> AlertArchive:
    return AlertArchive(tmp_path, SCHEMA)


def write(archive: AlertArchive, alerts: list[bytes], visit: int = VISIT, detector: int = DETECTOR) -> str:
    return archive.write(visit, detector, alerts, ids_of(len(alerts), visit, detector), keys_of(len(alerts)))


def index_file(archive: AlertArchive, path: str) -> Path:
    return (archive.folder / path).with_suffix(".index")


def test_every_alert_is_found_by_the_id_of_its_source_alone(archive: AlertArchive) -> None:
    for visit in (VISIT, VISIT + 2):
        for detector in (93, 94):
            write(archive, records(N, visit, detector), visit, detector)
    for visit in (VISIT, VISIT + 2):
        for detector in (93, 94):
            found = [archive.get(number) for number in ids_of(N, visit, detector).tolist()]
            assert found == records(N, visit, detector)


def test_the_index_says_id_key_and_place_of_each_alert(archive: AlertArchive) -> None:
    path = write(archive, records(N))
    rows, data = archive.index(path), (archive.folder / path).read_bytes()
    assert rows["diaSourceId"].tolist() == ids_of(N).tolist()
    assert rows["key"].tolist() == [1000, 1001, 1002, 1003, 77]
    ends = rows["offset"] + rows["length"]
    assert [data[a:b] for a, b in zip(rows["offset"], ends, strict=True)] == records(N)


@pytest.mark.parametrize("number", [dia_source_id(VISIT, DETECTOR, N), dia_source_id(VISIT, 95, 0), 12, -(2**62)])
def test_an_alert_that_is_not_there_is_refused_by_its_number(archive: AlertArchive, number: int) -> None:
    path = write(archive, records(N))
    with pytest.raises(BadData, match=str(number)):
        archive.get(number)
    with pytest.raises(BadData, match=str(number)):
        archive.get(number, path)


def test_an_alert_with_a_changed_byte_is_refused_and_its_neighbours_are_not(archive: AlertArchive) -> None:
    path = write(archive, records(N))
    data = bytearray((archive.folder / path).read_bytes())
    data[int(archive.index(path)["offset"][2]) + 100] ^= 1
    (archive.folder / path).write_bytes(data)
    numbers = ids_of(N).tolist()
    with pytest.raises(BadData, match=rf"{path}: the alert about DIASource {numbers[2]} is not what was written"):
        archive.get(numbers[2])
    assert [archive.get(number) for number in numbers[:2] + numbers[3:]] == records(N)[:2] + records(N)[3:]


def test_an_alert_in_a_file_cut_short_is_refused(archive: AlertArchive) -> None:
    path = write(archive, records(N))
    (archive.folder / path).write_bytes((archive.folder / path).read_bytes()[:-20])
    with pytest.raises(BadData, match="is not what was written"):
        archive.get(int(ids_of(N)[-1]))


def test_the_file_that_is_named_is_the_one_that_is_asked(archive: AlertArchive) -> None:
    first, second = records(N), records(N, cutout=b"made again")
    paths = write(archive, first), write(archive, second)
    number = int(ids_of(N)[3])
    assert [archive.get(number, path) for path in paths] == [first[3], second[3]]


def test_two_files_that_differ_are_both_named_where_nobody_says_which(archive: AlertArchive) -> None:
    paths = write(archive, records(N)), write(archive, records(N, cutout=b"made again"))
    with pytest.raises(BadData, match=r"differs in .*: the L1 database names") as caught:
        archive.get(int(ids_of(N)[0]))
    assert all(path in str(caught.value) for path in paths)


def test_an_alert_that_two_files_hold_alike_is_no_question(archive: AlertArchive) -> None:
    write(archive, records(N))
    write(archive, records(N)[:3])
    assert archive.get(int(ids_of(N)[1])) == records(N)[1]


@pytest.mark.parametrize("damage", [b"", b"PachonI1", b"PachonI2", b"x" * 300])
def test_an_index_that_is_no_index_counts_as_absent(archive: AlertArchive, damage: bytes) -> None:
    path = write(archive, records(N))
    before = archive.index(path)
    index_file(archive, path).write_bytes(damage)
    assert np.array_equal(archive.index(path), before)
    assert [archive.get(number) for number in ids_of(N).tolist()] == records(N)


@pytest.mark.parametrize("place", [0, 8, 60, -40, -1])
def test_a_single_changed_byte_of_an_index_is_noticed(archive: AlertArchive, place: int) -> None:
    path = write(archive, records(N))
    index, before = index_file(archive, path), archive.index(path)
    data = bytearray(index.read_bytes())
    data[place] ^= 0x10
    index.write_bytes(data)
    assert np.array_equal(archive.index(path), before)


def test_the_index_of_another_file_is_not_taken(archive: AlertArchive) -> None:
    path, other = write(archive, records(N)), write(archive, records(N, cutout=b"x"))
    index_file(archive, other).replace(index_file(archive, path))
    assert archive.get(int(ids_of(N)[0]), path) == records(N)[0]


def test_a_corrupt_index_beside_corrupt_alerts_is_refused(archive: AlertArchive) -> None:
    path = write(archive, records(N))
    index_file(archive, path).write_bytes(b"")
    data = bytearray((archive.folder / path).read_bytes())
    data[-30] ^= 1
    (archive.folder / path).write_bytes(data)
    with pytest.raises(BadData, match=path):
        archive.index(path)


def test_the_hash_of_each_alert_is_told_without_reading_it(archive: AlertArchive) -> None:
    path = write(archive, records(N))
    (archive.folder / path).unlink()
    hashes = [hashlib.sha256(record).digest() for record in records(N)]
    assert archive.hashes(path) == dict(zip(ids_of(N).tolist(), hashes, strict=True))


def test_an_index_that_was_removed_is_made_anew_from_the_alerts(archive: AlertArchive) -> None:
    path = write(archive, records(N))
    before = archive.index(path)
    index_file(archive, path).unlink()
    assert np.array_equal(archive.index(path), before)
    assert archive.get(int(ids_of(N)[4])) == records(N)[4]


def test_a_file_of_bytes_that_are_no_alerts_is_named_if_it_has_no_index(archive: AlertArchive) -> None:
    path = write(archive, [b"no alert"])
    assert archive.get(int(ids_of(1)[0])) == b"no alert"
    index_file(archive, path).unlink()
    with pytest.raises(BadData, match=f"{path}: it has no index, and an alert in it cannot be decoded"):
        archive.get(int(ids_of(1)[0]))


def test_ids_that_are_not_of_the_visit_detector_are_refused(archive: AlertArchive) -> None:
    strange = ids_of(N, VISIT, 95)
    with pytest.raises(BadData, match=f"DIASource {strange[0]} is not of it"):
        archive.write(VISIT, DETECTOR, records(N), strange, keys_of(N))


def test_another_number_of_ids_than_of_alerts_is_refused_and_leaves_nothing(archive: AlertArchive) -> None:
    with pytest.raises(BadData, match="4 alerts, 5 ids and 5 keys"):
        archive.write(VISIT, DETECTOR, records(4), ids_of(N), keys_of(N))
    assert list(archive.folder.rglob("*.*")) == []


def test_a_disk_too_full_for_the_index_leaves_nothing_behind(archive: AlertArchive) -> None:
    """Empty alerts, so that the index is the larger file."""
    n, size = 200, len(archive._container.header) + 200 * 18
    assert size < 200 * alert_index.ROW.itemsize
    with files_of_at_most(size), pytest.raises(Transient, match="cannot be written: File too large"):
        write(archive, [b""] * n)
    assert list(archive.folder.rglob("*.*")) == []
    assert archive.read(write(archive, [b""] * n)) == [b""] * n


@pytest.mark.parametrize("step", range(1, 9))
def test_a_writer_that_dies_leaves_either_nothing_that_counts_or_all(archive: AlertArchive, step: int) -> None:
    """It opens three folders, the Avro file and the index, names the index and the Avro file, opens the folder."""
    command = [sys.executable, "-m", "tests.backbone.alert_writer", str(archive.folder), str(step)]
    died = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    named = archive.files_of_visit(VISIT)
    assert len(named) == (step == 8)
    for file in named:
        assert archive.read(file.path) == records(N)
        assert index_file(archive, file.path).exists()
    path = write(archive, records(N))
    assert [file.path for file in archive.files_of_visit(VISIT)] == [path]
    assert [archive.get(number) for number in ids_of(N).tolist()] == records(N)


def test_files_are_listed_by_visit_and_detector(archive: AlertArchive) -> None:
    places = [(VISIT + 2, 3), (VISIT, 94), (VISIT, 3), (VISIT + 100_000, 3)]
    for visit, detector in places:
        write(archive, records(1, visit, detector), visit, detector)
    assert archive.nights() == [20260705, 20260706]
    assert [(f.visit, f.detector) for f in archive.files_of_night(20260705)] == sorted(places)[:3]
    assert [(f.visit, f.detector) for f in archive.files_of_visit(VISIT)] == [(VISIT, 3), (VISIT, 94)]
    assert archive.files_of_night(20200101) == archive.files_of_visit(2020010100001) == []
