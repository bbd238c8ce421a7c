"""Alerts of the archive, sent again to a real broker."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from rich.console import Console
from typer.testing import CliRunner, Result

from actors.alert_emitter import AlertEmitter
from backbone import alert_stream
from backbone.alert_archive import AlertArchive
from backbone.alert_stream import PARTITIONS, AlertStream
from backbone.l1_memory import L1Memory
from backbone.l1_postgres import L1Postgres
from cluster import replay_alerts
from cluster.cli import app
from cluster.replay_alerts import Chosen, Tally, Wanted, replay
from cluster.services import EmbeddedKafka, free_port
from payloads.alert_production.alert_schema import alert_schema
from schemas.clock import ManualClock
from schemas.errors import BadData, Transient
from schemas.events import AlertsReady
from tests.actors.fakes import FakeBroker
from tests.actors.packets_of import packets_of
from tests.backbone.kept_alerts import DETECTOR, SCHEMA, VISIT, ids_of, keys_of, records
from tests.backbone.l1_results import result

N = 5
READ_S, QUIET_S = 20.0, 0.3
Messages = list[tuple[bytes, bytes]]


@pytest.fixture
def archive(tmp_path: Path) -> AlertArchive:
    return AlertArchive(tmp_path / "alerts", SCHEMA)


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """One of its own for each test."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def write(archive: AlertArchive, visit: int, detector: int, *, cutout: bytes = b"") -> str:
    made = records(N, visit, detector, cutout=cutout)
    return archive.write(visit, detector, made, ids_of(N, visit, detector), keys_of(N))


def ask(archive: AlertArchive, kafka: str, topic: str, *wanted: object) -> Result:
    said = ["--output", archive.folder.parent, "--kafka", kafka, "--topic", topic, *wanted]
    return CliRunner().invoke(app, ["replay-alerts", *map(str, said)])


def read(kafka: str, topic: str, count: int) -> Messages:
    """The messages of a topic, by key: `count`, and a further one if there is one."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "reader", "log_level": 2})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    messages: Messages = []
    give_up = time.monotonic() + READ_S
    while len(messages) < count and time.monotonic() < give_up:
        messages += [(m.key() or b"", m.value() or b"") for m in consumer.consume(count - len(messages), 0.2)]
    messages += [(m.key() or b"", m.value() or b"") for m in consumer.consume(1, QUIET_S)]
    consumer.close()
    return sorted(messages)


def framed(alerts: Sequence[bytes], schema: int) -> Messages:
    """What goes out of alerts with the keys of `keys_of`."""
    header = bytes([0]) + schema.to_bytes(4, "big")
    named = zip(keys_of(len(alerts)).tolist(), alerts, strict=True)
    return sorted((str(key).encode(), header + alert) for key, alert in named)


async def store(dsn: str, visit: int, paths: Mapping[int, str], withdrawn: Collection[int] = ()) -> None:
    """Put files of a visit in the database; those DIASources of it are withdrawn."""
    l1 = await L1Postgres.open(dsn)
    for detector, path in paths.items():
        made = replace(result(visit, detector, n=N), alert_path=path)
        gone = np.isin(made.sources["diaSourceId"], list(withdrawn))
        made.sources["timeWithdrawnMjdTai"] = np.where(gone, 61000.0, np.nan)
        await l1.store(made, [], 1.0)
    await l1.close()


def test_what_is_sent_again_is_what_the_emitter_sent(tmp_path: Path, broker: str, topic: str) -> None:
    archive = AlertArchive(tmp_path / "alerts", alert_schema())
    whole = result(VISIT, DETECTOR, n=N)
    path = archive.write(VISIT, DETECTOR, packets_of(whole, side=31), whole.alert_ids, whole.alert_keys())
    stored = replace(whole, alert_path=path)
    event = AlertsReady(
        group="g", instrument="LSSTCam", visit=VISIT, detector=DETECTOR, readout_ended=1.0, dia_sources=N,
        new_dia_objects=0, alerts=N, path=path, stages={},
    )  # fmt: skip

    async def emit() -> None:
        l1, sink = L1Memory(), await AlertStream.open(broker, "first", ManualClock(5.0))
        await l1.store(stored, [event], 1.0)
        await AlertEmitter(l1=l1, archive=archive, sink=sink).react(event)

    asyncio.run(emit())
    answer = ask(archive, broker, topic, "--night", VISIT // 100_000)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.splitlines() == [
        f"{path}: 5 of 5 acknowledged", f"5 alerts of 1 files sent to {topic} at {broker}, 5 acknowledged",
    ]  # fmt: skip
    assert read(broker, topic, N) == read(broker, "first", N)


def test_alerts_of_an_earlier_schema_keep_its_number(archive: AlertArchive, broker: str, topic: str) -> None:
    write(archive, VISIT, DETECTOR)
    assert ask(archive, broker, topic, "--visit", VISIT).exit_code == 0
    assert read(broker, topic, N) == framed(records(N), 1100)


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (("--night", 20260705), [(VISIT, 93), (VISIT, 94), (VISIT + 2, 94)]),
        (("--visit", VISIT), [(VISIT, 93), (VISIT, 94)]),
        (("--visit", VISIT, "--detector", 94), [(VISIT, 94)]),
    ],
)
def test_only_what_is_wanted_is_sent_and_counted_file_by_file(
    archive: AlertArchive, broker: str, topic: str, wanted: tuple[object, ...], places: list[tuple[int, int]]
) -> None:
    paths = {
        (visit, detector): write(archive, visit, detector)
        for visit, detector in [(VISIT, 93), (VISIT, 94), (VISIT + 2, 94), (VISIT + 100_000, 94)]
    }
    answer = ask(archive, broker, topic, *wanted)
    assert answer.exit_code == 0, answer.output
    *lines, total = answer.stdout.splitlines()
    assert lines == [f"{paths[place]}: 5 of 5 acknowledged" for place in places]
    assert total.startswith(f"{5 * len(places)} alerts of {len(places)} files sent to {topic} at {broker}")
    sent = [value for _, value in read(broker, topic, 5 * len(places))]
    assert sorted(value[5:] for value in sent) == sorted(a for p in places for a in records(N, *p))


def test_of_two_files_the_newest_is_taken_and_that_is_said(archive: AlertArchive, broker: str, topic: str) -> None:
    first, second = write(archive, VISIT, DETECTOR), write(archive, VISIT, DETECTOR, cutout=b"made again")
    os.utime(archive.folder / second, (1e9, 1e9))
    answer = ask(archive, broker, topic, "--visit", VISIT)
    assert (
        f"has 2 files; without --postgres, which says the stored one, the newest is taken: {first}, not {second}"
        in (answer.stdout)
    )
    assert read(broker, topic, N) == framed(records(N), 1100)


def test_of_two_files_the_database_says_the_stored_one(
    archive: AlertArchive, broker: str, topic: str, dsn: str
) -> None:
    stored, newest = write(archive, VISIT, DETECTOR), write(archive, VISIT, DETECTOR, cutout=b"made again")
    os.utime(archive.folder / stored, (1e9, 1e9))
    stray, gone = write(archive, VISIT, 3), write(archive, VISIT, 4)
    (archive.folder / gone).unlink()

    asyncio.run(store(dsn, VISIT, {DETECTOR: stored, 4: gone}))
    answer = ask(archive, broker, topic, "--visit", VISIT, "--postgres", dsn)
    assert answer.exit_code == 2
    for path in (newest, stray):
        assert f"{path}: not sent: the L1 database does not name it" in answer.stdout
    assert f"{stored}: 5 of 5 acknowledged" in answer.stdout
    assert f"1 files could not be sent: {archive.folder / gone}: there is no such alert file" in answer.stderr
    assert read(broker, topic, N) == framed(records(N), 1100)


def test_what_is_withdrawn_is_left_out_unless_it_is_asked_for(
    archive: AlertArchive, broker: str, topic: str, dsn: str
) -> None:
    visit, gone = VISIT + 100_000, ids_of(N, VISIT + 100_000)[1:3].tolist()
    path = write(archive, visit, DETECTOR)
    asyncio.run(store(dsn, visit, {DETECTOR: path}, gone))
    answer = ask(archive, broker, topic, "--night", 20260706, "--postgres", dsn)
    assert answer.stdout.splitlines() == [
        f"{path}: 3 of 3 acknowledged",
        f"3 alerts of 1 files sent to {topic} at {broker}, 3 acknowledged, 2 withdrawn ones left out",
    ]
    every = framed(records(N, visit), 1100)
    kept = [message for message in every if int(message[0]) not in keys_of(N)[1:3]]
    assert read(broker, topic, 3) == kept
    answer = ask(archive, broker, f"{topic}-all", "--visit", visit, "--postgres", dsn, "--withdrawn")
    assert answer.stdout.endswith("5 acknowledged\n")
    assert read(broker, f"{topic}-all", N) == every


def test_without_a_database_or_with_another_nothing_is_sent(archive: AlertArchive, dsn: str) -> None:
    write(archive, VISIT, DETECTOR)
    answer = ask(archive, "nowhere:1", "alerts", "--visit", VISIT, "--withdrawn")
    assert (answer.exit_code, "--withdrawn goes with --postgres" in answer.stderr) == (2, True)
    strange = dsn.replace("/postgres", "/template1")
    answer = ask(archive, "nowhere:1", "alerts", "--visit", VISIT, "--postgres", strange)
    assert answer.exit_code == 2
    assert answer.stderr.endswith("template1 is no L1 database; it is left as it is\n")


def test_a_corrupt_file_is_named_and_the_others_are_sent(archive: AlertArchive, broker: str, topic: str) -> None:
    bad, good = archive.folder / write(archive, VISIT, 93), write(archive, VISIT, 94)
    bad.write_bytes(bad.read_bytes()[:-100])
    answer = ask(archive, broker, topic, "--visit", VISIT)
    assert answer.exit_code == 2
    assert f"pachon: 1 files could not be sent: {bad}: corrupt before byte" in answer.stderr
    assert f"{good}: 5 of 5 acknowledged" in answer.stdout
    assert read(broker, topic, N) == framed(records(N), 1100)


def test_a_corrupt_index_is_done_without(archive: AlertArchive, broker: str, topic: str) -> None:
    (archive.folder / write(archive, VISIT, DETECTOR)).with_suffix(".index").write_bytes(b"")
    assert ask(archive, broker, topic, "--visit", VISIT).exit_code == 0
    assert read(broker, topic, N) == framed(records(N), 1100)


def test_a_night_is_sent_in_batches(
    archive: AlertArchive, broker: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_alerts, "BATCH_BYTES", 4000)  # two files and a bit
    for detector in range(7):
        write(archive, VISIT, detector)
    answer = ask(archive, broker, topic, "--visit", VISIT)
    assert "35 alerts of 7 files" in answer.stdout
    assert len(read(broker, topic, 35)) == 35


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ((), "give either --night or --visit"),
        (("--night", 20260705, "--visit", VISIT), "give either --night or --visit"),
        (("--night", 20260705, "--detector", 94), "--detector goes with --visit"),
        (("--night", 20260101), "there are no alerts of night 20260101"),
        (("--visit", VISIT, "--detector", 3), f"there are no alerts of visit {VISIT} detector 3"),
    ],
)
def test_what_cannot_be_chosen_is_refused_before_the_broker_is_asked(
    archive: AlertArchive, wanted: tuple[object, ...], why: str
) -> None:
    write(archive, VISIT, DETECTOR)
    answer = ask(archive, "nowhere:1", "alerts", *wanted)
    assert answer.exit_code == 2
    assert why in answer.stderr


def test_a_folder_without_alerts_is_refused_by_name(tmp_path: Path) -> None:
    answer = ask(AlertArchive(tmp_path / "night" / "alerts", SCHEMA), "nowhere:1", "alerts", "--visit", VISIT)
    assert answer.exit_code == 2
    assert f"{tmp_path}/night/alerts: there is no alert archive" in answer.stderr


def test_a_broker_that_is_not_there_is_named(archive: AlertArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_stream, "_CREATE_S", 1.0)
    write(archive, VISIT, DETECTOR)
    address = f"127.0.0.1:{free_port()}"
    answer = ask(archive, address, "alerts", "--visit", VISIT)
    assert answer.exit_code == 2
    assert address in answer.stderr


async def test_a_broker_that_dies_is_named_and_no_further_batch_is_tried(
    archive: AlertArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_stream, "DELIVERY_S", 1.5)
    monkeypatch.setitem(alert_stream._SETTINGS, "delivery.timeout.ms", 1500)
    monkeypatch.setattr(replay_alerts, "BATCH_BYTES", 1)
    paths = [write(archive, VISIT, detector) for detector in range(3)]
    with EmbeddedKafka(tmp_path / "log") as kafka:
        sink = await AlertStream.open(kafka.bootstrap, "alerts", ManualClock(5.0))
        assert kafka.process is not None
        kafka.process.kill()
    tally = await replay(archive, Chosen(paths), sink, Console(quiet=True))
    assert (tally.files, tally.alerts, tally.acknowledged, tally.failures.total()) == (1, 5, 0, 5)
    with pytest.raises(Transient, match=f"5 of 5 alerts not acknowledged by {kafka.bootstrap}: .*timed out"):
        tally.check(kafka.bootstrap)


@pytest.mark.parametrize(
    ("tally", "kind"),
    [
        (Tally(alerts=9, failures=Counter({"timed out": 5})), Transient),
        (Tally(alerts=9, failures=Counter({"timed out": 5}), unreadable=["x.avro: corrupt"]), Transient),
        (Tally(alerts=9, failures=Counter({"timed out": 1, "too large": 4}), too_large=4), Transient),
        (Tally(alerts=9, failures=Counter({"too large": 4}), too_large=4), BadData),
        (Tally(unreadable=["x.avro: corrupt"]), BadData),
    ],
)
def test_what_may_be_right_next_time_is_tried_again_whatever_else_is_wrong(tally: Tally, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        tally.check("b")


async def test_files_that_are_all_too_large_hold_up_no_other(
    archive: AlertArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_alerts, "BATCH_BYTES", 1)
    large = write(archive, VISIT, 92, cutout=bytes(50_000))
    paths = [large, write(archive, VISIT, 93), write(archive, VISIT, 94)]
    done: list[str] = []
    tally = await replay(archive, Chosen(paths), FakeBroker(5.0, most=50_000), Console(quiet=True), done.append)
    assert (tally.files, tally.acknowledged, tally.too_large, done) == (3, 10, 5, paths[1:])


def test_a_choice_of_nothing_is_refused() -> None:
    with pytest.raises(BadData, match="give either"):
        Wanted()
