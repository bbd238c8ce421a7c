"""From encoded alerts to acknowledged ones: archive, then broker. `python -m bench.alerts_out`."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from lsst.alert.packet import Schema

from backbone.alert_archive import AlertArchive
from backbone.alert_stream import _SETTINGS, Alert, AlertStream
from cluster.services import EmbeddedKafka
from schemas.clock import ManualClock

VISIT = 2026070500004
ALERTS, BYTES = 10_000, 48_600
CCDS = 189


def packets() -> list[bytes]:
    """As long as alerts with three stamps of 51 pixels, and as full of big-endian floats of noise."""
    rng = np.random.default_rng(1)
    return [rng.normal(0.0, 100.0, BYTES // 4).astype(">f4").tobytes() for _ in range(ALERTS)]


def median(repeats: int, call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def archive(folder: Path, records: list[bytes]) -> None:
    kept = AlertArchive(folder, Schema.from_file().definition)
    whole = median(3, lambda: kept.write(VISIT, 94, records))
    path = kept.write(VISIT, 94, records)
    back = median(3, lambda: kept.read(path))
    size = ALERTS * BYTES / 1e6
    print(f"archive {ALERTS} alerts, {size:.0f} MB, one file: {whole:.2f} s, {size / whole:.0f} MB/s")
    print(f"read them back, checked: {back:.2f} s, {size / back:.0f} MB/s")
    ccd = records[: ALERTS // CCDS]
    print(f"archive the {len(ccd)} alerts of a CCD: {median(15, lambda: kept.write(VISIT, 1, ccd)):.4f} s")


async def stream(records: list[bytes], bootstrap: str, codec: str) -> None:
    _SETTINGS["compression.type"] = codec
    sink = await AlertStream.open(bootstrap, f"alerts-{codec}", ManualClock())
    alerts = [Alert(str(i).encode(), record, i) for i, record in enumerate(records)]
    await sink.send(alerts[:10])
    seconds = []
    for _ in range(3):
        start, used = time.perf_counter(), time.process_time()
        deliveries = await sink.send(alerts)
        seconds.append(time.perf_counter() - start)
        used = time.process_time() - used
        assert not any(delivery.error for delivery in deliveries)
    start = time.perf_counter()
    await sink.send(alerts[:53])
    print(
        f"{codec}: {ALERTS} alerts acknowledged one by one in {statistics.median(seconds):.2f} s"
        f" ({used:.2f} CPU s),"
        f" 53 in {(time.perf_counter() - start) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    made = packets()
    with tempfile.TemporaryDirectory() as name:
        archive(Path(name), made)
        for compression in ("none", "lz4", "zstd"):
            with EmbeddedKafka(Path(name) / "broker.log") as kafka:
                asyncio.run(stream(made, kafka.bootstrap, compression))
                assert kafka.process is not None
                kafka.process.kill()
