import io
import os
from pathlib import Path
from typing import Any

import fastavro
import pytest
from lsst.alert.packet import Schema, retrieve_alerts, simulate_alert

from backbone.alert_archive import AlertArchive
from schemas.errors import BadData, Transient
from tests.backbone.full_disk import files_of_at_most
from tests.backbone.kept_alerts import DETECTOR, VISIT, ids_of, keys_of

N = 7


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    definition: dict[str, Any] = Schema.from_file().definition
    return definition


@pytest.fixture(scope="module")
def packets(schema: dict[str, Any]) -> list[bytes]:
    """Alerts of the official schema, with cutouts of some size."""
    made = []
    for i in range(N):
        alert = simulate_alert(Schema.from_file().definition)  # it changes the schema that it is given
        alert |= {"diaSourceId": int(ids_of(N)[i]), "cutoutDifference": bytes([i]) * 20_000}
        alert["diaSource"] |= {"diaObjectId": 1000 + i, "ssObjectId": None}
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, schema, alert)
        made.append(stream.getvalue())
    return made


@pytest.fixture
def archive(tmp_path: Path, schema: dict[str, Any]) -> AlertArchive:
    return AlertArchive(tmp_path, schema)


def write(archive: AlertArchive, records: list[bytes]) -> str:
    return archive.write(VISIT, DETECTOR, records, ids_of(len(records)), keys_of(len(records)))


def test_alerts_come_back_byte_for_byte(archive: AlertArchive, packets: list[bytes]) -> None:
    path = archive.write(VISIT, DETECTOR, packets, ids_of(N), keys_of(N))
    assert path.startswith("20260705/2026070500004/2026070500004_094_")
    assert archive.read(path) == packets


def test_a_visit_detector_without_alerts_has_an_empty_file(archive: AlertArchive) -> None:
    assert archive.read(write(archive, [])) == []


def test_fastavro_reads_the_file(
    archive: AlertArchive, packets: list[bytes], schema: dict[str, Any], tmp_path: Path
) -> None:
    with (tmp_path / write(archive, packets)).open("rb") as file:
        alerts = list(fastavro.reader(file))
    assert alerts == [fastavro.schemaless_reader(io.BytesIO(p), schema, None) for p in packets]


def test_the_official_package_reads_the_file_and_its_schema(
    archive: AlertArchive, packets: list[bytes], schema: dict[str, Any], tmp_path: Path
) -> None:
    with (tmp_path / write(archive, packets)).open("rb") as file:
        written, alerts = retrieve_alerts(file)
        assert [alert["diaSourceId"] for alert in alerts] == ids_of(N).tolist()
    assert written.definition["name"] == schema["name"]
    assert [f["name"] for f in written.definition["fields"]] == [f["name"] for f in schema["fields"]]


def test_the_same_alerts_written_again_are_the_same_file(
    archive: AlertArchive, packets: list[bytes], tmp_path: Path
) -> None:
    path = write(archive, packets)
    first = (tmp_path / path).read_bytes()
    assert write(archive, packets) == path
    assert (tmp_path / path).read_bytes() == first
    assert len(list(tmp_path.rglob("*.*"))) == 2


def test_other_alerts_get_another_name_and_the_first_file_stays(archive: AlertArchive, packets: list[bytes]) -> None:
    first = write(archive, packets)
    second = write(archive, packets[::-1])
    assert first != second
    assert archive.read(first) == packets
    assert archive.read(second) == packets[::-1]


@pytest.mark.parametrize("kept", [0, 3, 60, 20_000, -20_300, -17, -1])
def test_a_file_cut_short_is_refused_by_name(
    archive: AlertArchive, packets: list[bytes], tmp_path: Path, kept: int
) -> None:
    path = write(archive, packets)
    file = tmp_path / path
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(BadData, match=str(file)):
        archive.read(path)


def test_a_file_that_lost_its_last_alert_whole_is_refused(
    archive: AlertArchive, packets: list[bytes], tmp_path: Path
) -> None:
    shorter = tmp_path / write(archive, packets[:-1])
    path = write(archive, packets)
    shorter.replace(tmp_path / path)
    with pytest.raises(BadData, match="are not those that were written"):
        archive.read(path)


def test_more_alerts_than_one_call_of_the_kernel_takes_come_back(archive: AlertArchive, packets: list[bytes]) -> None:
    many = [packet[: 1 + number] for number, packet in enumerate(packets * 100)]
    assert archive.read(write(archive, many)) == many


def test_what_the_kernel_leaves_over_is_written_after_it(
    archive: AlertArchive, packets: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a signal comes, or the disk takes less than it is given."""
    monkeypatch.setattr(os, "writev", lambda descriptor, parts: os.write(descriptor, b"".join(parts)[:12_345]))
    assert archive.read(write(archive, packets)) == packets


def test_a_file_read_unchecked_has_the_same_alerts_and_is_refused_if_it_is_cut_short(
    archive: AlertArchive, packets: list[bytes], tmp_path: Path
) -> None:
    path = write(archive, packets)
    assert archive.read_unchecked(path) == packets
    (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:-17])
    with pytest.raises(BadData, match=path):
        archive.read_unchecked(path)


@pytest.mark.parametrize("place", [0, 5, -10, -5000])
def test_a_single_changed_byte_is_noticed_outside_the_schema(
    archive: AlertArchive, packets: list[bytes], tmp_path: Path, place: int
) -> None:
    path = write(archive, packets)
    data = bytearray((tmp_path / path).read_bytes())
    data[place] ^= 0x10
    (tmp_path / path).write_bytes(data)
    with pytest.raises(BadData, match=path):
        archive.read(path)


def test_a_file_that_is_not_there_is_refused_by_name(archive: AlertArchive) -> None:
    with pytest.raises(BadData, match=r"20260705/none\.avro: there is no such alert file"):
        archive.read("20260705/none.avro")


def test_a_full_disk_is_said_and_leaves_nothing_behind(
    archive: AlertArchive, packets: list[bytes], tmp_path: Path
) -> None:
    with files_of_at_most(150_000), pytest.raises(Transient, match=r"2026070500004_094.*cannot be written"):
        write(archive, packets * 10)
    assert list(tmp_path.rglob("*.*")) == []
    assert archive.read(write(archive, packets)) == packets
