"""A million small alerts kept, and found again one by one and by object. `python -m bench.alert_archive [folder]`."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from backbone.alert_archive import AlertArchive
from backbone.alert_objects import AlertsOfObjects
from schemas.identity import dia_source_id

FIRST_VISIT = 2026070500001
VISITS, CCDS, ALERTS, BYTES = 100, 189, 53, 200
OBJECTS = 300_000
PACKET_BYTES = 48_600
SCHEMA = {"type": "record", "name": "lsst.v11_1.alert", "fields": []}
"""Small, too: nothing is decoded here."""


def fill(archive: AlertArchive, rng: np.random.Generator) -> list[tuple[int, str, int]]:
    """A night; returns id, file and key of the first alert of each file."""
    firsts, seconds = [], []
    records = [rng.bytes(BYTES) for _ in range(ALERTS)]
    for visit in range(FIRST_VISIT, FIRST_VISIT + VISITS):
        for detector in range(CCDS):
            ids = np.array([dia_source_id(visit, detector, i) for i in range(ALERTS)], np.int64)
            keys = rng.integers(1, OBJECTS, ALERTS)
            start = time.perf_counter()
            path = archive.write(visit, detector, [rng.bytes(16), *records[1:]], ids, keys)
            seconds.append(time.perf_counter() - start)
            firsts.append((int(ids[0]), path, int(keys[0])))
    n, ms = len(firsts) * ALERTS, 1e3 * statistics.median(seconds)
    print(f"{n} alerts in {len(firsts)} files written in {sum(seconds):.0f} s, a file in {ms:.1f} ms")
    return firsts


def timed(what: str, calls: Sequence[Callable[[], object]]) -> None:
    ms = []
    for call in calls:
        start = time.perf_counter()
        call()
        ms.append((time.perf_counter() - start) * 1e3)
    print(f"{what}: median {statistics.median(ms):.2f} ms, longest {max(ms):.2f} ms of {len(ms)}")


def find(archive: AlertArchive, firsts: list[tuple[int, str, int]], rng: np.random.Generator) -> None:
    chosen = [firsts[i] for i in rng.choice(len(firsts), 500, replace=False)]
    timed("get by id alone", [partial(archive.get, number) for number, _, _ in chosen])
    timed("get by id and file", [partial(archive.get, number, path) for number, path, _ in chosen])
    objects = AlertsOfObjects(archive)
    timed("alerts of an object, the night's index not made yet", [partial(objects.find, chosen[0][2])])
    timed("alerts of an object", [partial(objects.find, key) for _, _, key in chosen])
    size = sum(path.stat().st_size for path in archive.folder.glob("*.objects"))
    print(f"the night's index of objects: {size / 1e6:.0f} MB")


def one_large_file(archive: AlertArchive, rng: np.random.Generator) -> None:
    """As no visit-detector has, a million alerts in one file."""
    visit, n = FIRST_VISIT + 1000, VISITS * CCDS * ALERTS
    ids = np.array([dia_source_id(visit, 0, i) for i in range(n)], np.int64)
    record = rng.bytes(BYTES)
    path = archive.write(visit, 0, [record] * n, ids, ids)
    timed(f"get from one file of {n}", [partial(archive.get, int(m), path) for m in rng.choice(ids, 20)])


def packets(archive: AlertArchive, rng: np.random.Generator) -> None:
    """The file of a CCD as large as real ones: what the index adds to the time from pixels to broker."""
    records = [rng.bytes(PACKET_BYTES) for _ in range(ALERTS)]
    ids = np.array([dia_source_id(FIRST_VISIT + 2000, 0, i) for i in range(ALERTS)], np.int64)
    write = [partial(archive.write, FIRST_VISIT + 2000, 0, records, ids, ids)] * 30
    timed(f"write {ALERTS} alerts of {PACKET_BYTES} bytes", write)


if __name__ == "__main__":
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        kept = AlertArchive(Path(name), SCHEMA)
        written = fill(kept, generator)
        subprocess.run(["sync"], check=True)
        find(kept, written, generator)
        packets(kept, generator)
        one_large_file(kept, generator)
