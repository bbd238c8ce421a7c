"""Alerts encoded, archived and sent, each by itself; a visit's from end to end are `bench.alerts_visit`.

    python -m bench.alerts

Medians of five and their spread (greatest less least), in CPU seconds of this process: other work on the machine
changes them least. Against Rubin's way on the same records: `lsst.alert.packet` with fastavro for the packet, the
records given as dicts; astropy for the cutouts, the arrays and the WCS cards given. Sources, objects and history are
random and full, a fifth of what may be null is null; a stamp has 51 x 51 pixels.
"""

import asyncio
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from astropy.io import fits
from lsst.alert.packet import Schema

from backbone.alert_archive import AlertArchive
from backbone.alert_stream import Alert, AlertStream
from backbone.l1 import VisitDetectorResult, alert_keys
from cluster.allocator import keep_freed_memory
from cluster.services import EmbeddedKafka
from payloads.alert_production import packets
from payloads.alert_production.alert_schema import alert_schema, frame
from payloads.alert_production.lite import lite
from schemas.clock import ManualClock
from schemas.image import MaskedImage, Observation, Stamp
from schemas.tables import Table, empty
from schemas.wcs import Wcs
from tests.backbone.l1_results import DEC, MJD, RA, filled, result

VISIT, CCDS, PER_CCD = 2026070500004, 189, 53
PAIRS, PIXELS, PSF_PIXELS = 20, 51, 25
REPEATS, FEW = 5, 20
SEEN = Observation(
    "LSSTCam", "g1", VISIT, VISIT + 1, 1, 2, "", "r_57", "r", RA, DEC, 33.2, 15.0, 0.0, 17.0, "BLOCK-407"
)
NO_ROWS = {name: empty(name, 0) for name in ("DiaSource", "DiaForcedSource", "SSSource", "mpc_orbits")}


@dataclass(frozen=True)
class Ccd:
    """A visit-detector's sources, a stamp and `PAIRS` pairs of history each, and what is stored with them."""

    stored: VisitDetectorResult
    stamps: Sequence[Stamp]
    history: Table
    forced: Table

    @property
    def sources(self) -> Table:
        """Those that are alerts: the last one is of an orbit."""
        return self.stored.sources[:-1]

    def encoded(self) -> list[bytes]:
        """The packets."""
        return packets.make_packets(
            self.sources, self.stamps, objects=self.stored.objects, history=self.history,
            forced_history=self.forced, ss_sources=NO_ROWS["SSSource"], orbits=NO_ROWS["mpc_orbits"], observation=SEEN,
        )  # fmt: skip


def ccd(detector: int, n: int, like: Ccd | None = None) -> Ccd:
    """`n` alerts; the history of `like` told as theirs, where it is given: random rows take long to draw."""
    rng = np.random.default_rng(detector)
    stored = result(VISIT, detector, n=n + 1)
    ids = stored.sources["diaSourceId"][:-1].astype(np.int64)
    stored = replace(stored, alert_ids=ids)
    history, forced = (
        (like.history.copy(), like.forced.copy())
        if like
        else (filled("DiaSource", n * PAIRS, rng), filled("DiaForcedSource", n * PAIRS, rng))
    )
    for table in (history, forced):
        table["diaObjectId"] = np.repeat(stored.sources["diaObjectId"][:-1], PAIRS)
        table["midpointMjdTai"] = MJD - 1.0 - np.tile(np.arange(PAIRS), n)
        table["timeWithdrawnMjdTai"] = np.nan
    stamps = like.stamps if like else [stamp(rng) for _ in range(n)]
    return Ccd(stored, stamps, history, forced)


def stamp(rng: np.random.Generator) -> Stamp:
    """Noise, its variance, a few flags, a PSF."""
    planes = []
    for _ in range(3):
        image = rng.normal(0.0, 100.0, (PIXELS, PIXELS)).astype(np.float32)
        mask = (rng.random(image.shape) < 0.02).astype(np.uint16)
        planes.append(MaskedImage(image, mask, rng.normal(1e4, 50.0, image.shape).astype(np.float32)))
    axis = np.arange(PSF_PIXELS) - PSF_PIXELS // 2
    psf = np.exp(-(np.hypot(*np.meshgrid(axis, axis)) ** 2) / 12.5).astype(np.float32)
    x, y = rng.uniform(-2000.0, 2000.0, 2).tolist()
    wcs = Wcs((RA, DEC), (x, y), 0.2 / 3600 * np.array([[-0.8, 0.6], [0.6, 0.8]]))
    return Stamp(planes[0], planes[1], planes[2], wcs, psf, psf, psf)


def measured(call: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """CPU seconds, median and spread, after one call to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds)), float(np.ptp(seconds))


def told(what: str, n: int, spent: tuple[float, float], other: str = "") -> None:
    median, spread = spent
    print(f"{what:46s} {n / median:9,.0f}/s {1e6 * median / n:8.1f} us (spread {1e6 * spread / n:.1f}) {other}")


def encoding(many: Ccd, few: Ccd) -> None:
    """Packets a second of one core; `many` and `few` alerts a call."""
    whole, n = many.encoded(), len(many.sources)
    bare = replace(many, history=NO_ROWS["DiaSource"], forced=NO_ROWS["DiaForcedSource"])
    none = [b"\0", b"\0", b"\0"]
    print(f"encode; whole packets of {sum(map(len, whole)) / n / 1e3:.0f} kB, lite ones of {len(lite(whole[0]))} B")
    with patch.object(packets, "_cutouts", lambda _stamp, _rotation: none):
        told("no history, no stamps; target 30,000/s", n, measured(bare.encoded))
        told(f"{PAIRS} pairs of history, no stamps", n, measured(many.encoded))
        peers = serialized_by_peers(bare.encoded()), serialized_by_peers(many.encoded())
    told(f"{PAIRS} pairs and stamps; target 8,000/s", n, measured(many.encoded))
    told(f"the same, {len(few.sources)} a call", len(few.sources), measured(few.encoded))
    told("lite, cut from whole", n, measured(lambda: [lite(packet) for packet in whole]))
    told("lsst.alert.packet: no history, no stamps", FEW, peers[0])
    told(f"lsst.alert.packet: {PAIRS} pairs, no stamps", FEW, peers[1])
    told("and astropy: three stamps", FEW, measured(lambda: [by_astropy(each) for each in many.stamps[:FEW]]))


def serialized_by_peers(made: Sequence[bytes]) -> tuple[float, float]:
    schema = Schema.from_uri()
    alerts = [schema.deserialize(packet) for packet in made[:FEW]]
    return measured(lambda: [schema.serialize(alert) for alert in alerts])


def by_astropy(one: Stamp) -> list[bytes]:
    """The three cutouts as FITS files of four images."""
    files, header = [], fits.Header(one.wcs.to_header())
    for pixels, psf in (
        (one.difference, one.psf_difference), (one.science, one.psf_science), (one.template, one.psf_template),
    ):  # fmt: skip
        file = io.BytesIO()
        hdus = [fits.PrimaryHDU(pixels.image, header), fits.ImageHDU(pixels.variance, name="UNCERT")]
        hdus += [fits.ImageHDU(pixels.mask, name="MASK"), fits.ImageHDU(psf, name="PSFIMAGE")]
        fits.HDUList(hdus).writeto(file)
        files.append(file.getvalue())
    return files


def archiving(one: Ccd, folder: Path) -> None:
    """A visit-detector's file, written to the disk and read back."""
    kept, records = AlertArchive(folder, alert_schema()), one.encoded()
    ids, keys = one.stored.alert_ids, alert_keys(one.sources)
    size = sum(map(len, records)) / 1e6
    path = kept.write(VISIT, int(one.stored.detector), records, ids, keys)
    for what, call in (
        ("archived", lambda: kept.write(VISIT, int(one.stored.detector), records, ids, keys)),
        ("read back, checked", lambda: kept.read(path)),
    ):
        start = time.perf_counter()
        median, spread = measured(call)
        wall = (time.perf_counter() - start) / (REPEATS + 1)
        print(f"{len(records)} alerts, {size:.1f} MB, {what}: {median * 1e3:.1f} ms CPU (spread {spread * 1e3:.1f}),"
              f" {wall * 1e3:.1f} ms wall")  # fmt: skip


async def compressing(one: Ccd, folder: Path) -> None:
    """The same alerts sent with each codec of the client."""
    alerts = [
        Alert(str(key).encode(), frame(record), int(key))
        for record, key in zip(one.encoded(), one.stored.alert_ids, strict=True)
    ]
    for codec in ("none", "lz4", "zstd"):
        changed = {"compression.type": codec} | ({} if codec == "zstd" else {"compression.level": -1})
        with EmbeddedKafka(folder / "broker.log") as kafka, patch.dict("backbone.alert_stream._SETTINGS", changed):
            sink = await AlertStream.open(kafka.bootstrap, "alerts", ManualClock())
            await sink.send(alerts[:10])
            assert kafka.process is not None
            start, used, before = time.perf_counter(), time.process_time(), cpu_of(kafka.process.pid)
            deliveries = await sink.send(alerts)
            wall, used = time.perf_counter() - start, time.process_time() - used
            assert not any(delivery.error for delivery in deliveries)
            scale = 10_000 / len(alerts)
            print(f"10,000 whole alerts sent with {codec}: {wall * scale:.2f} s wall, {used * scale:.2f} s CPU here,"
                  f" {(cpu_of(kafka.process.pid) - before) * scale:.2f} s in the broker")  # fmt: skip


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and its children, also of those that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(cpu_of(int(child)) for child in children)


def main() -> None:
    """All of it; memory kept, as workers keep it."""
    keep_freed_memory()
    many = ccd(1, 1000)
    encoding(many, ccd(2, PER_CCD))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        archiving(ccd(2, PER_CCD), folder)
        asyncio.run(compressing(many, folder))


if __name__ == "__main__":
    main()
