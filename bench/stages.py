"""What each stage of a visit-detector costs, raws (2 snaps) to scored DIASources, and how much memory the whole takes.

    python -m bench.stages [SEED]

Core-seconds, medians of five after one to warm up, in a process of its own; GB/s: what a stage has to read and write at
the least, by what it took; against a plain copy of the same bytes on the same core, in the same run. Memory: resident
in that process with the system's modules only, and at the most.
"""

import multiprocessing
import pickle
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.stage_times import StageTimes
from backbone.butler import ButlerArchive
from cluster import prepare
from cluster.allocator import keep_freed_memory
from cluster.products import ButlerProducts
from cluster.settings import Settings
from payloads.alert_production import pipeline
from simulators.camera.exposure import FocalPlane
from simulators.ocs.schedule import load_schedule
from simulators.sky.sky import Sky

DETECTOR = 94
REPEATS, SNAPS = 5, 2

BYTES_PER_PIXEL = {
    "remove_signature": 2 * (4 + 14 + 10),
    "combine_snaps": 2 * 10 + 10,
    "characterize": 10 + 10,
    "calibrate": 10 + 10,
    "warp": 10 + 10,
    "subtract": 10 + 10 + 10 + 4,
    "detect": 10 + 4 + 2,
}
"""Read and written at the least: an image and its variance are 4 bytes each, its mask 2, a raw 4, a calibration 14."""


@dataclass(frozen=True)
class Measured:
    """Of one process. `seconds`: by stage, a repeat each; memory in MB."""

    seconds: list[dict[str, float]]
    n_sources: int
    pixels: int
    copy: float
    modules: float
    most: float


def prepared(seed: int, folder: Path) -> None:
    """Write down the raws of one visit-detector and what is known before it, each in a file."""
    visit = load_schedule("own", n=1, seed=seed)[0]
    settings = Settings(output=folder, detectors=(DETECTOR,))
    prepare.make_and_put(prepare.missing(settings, [visit])[0], seed, settings)
    products = ButlerProducts(ButlerArchive.open(settings.butler), settings.instrument)
    plane = FocalPlane(seed, settings.instrument, Sky(seed))
    context = products.context_for(
        plane.camera[DETECTOR], visit.ra, visit.dec, visit.rotation, visit.physical_filter, visit.day_obs
    )
    things = [context, *prepare.raws_of(plane, visit, DETECTOR)]
    for number, thing in enumerate(things):
        (folder / f"{number}.pickle").write_bytes(pickle.dumps(thing, protocol=5))


def loaded(path: Path) -> Any:  # noqa: ANN401 (whatever was written)
    """What `prepared` wrote."""
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301 (by this program, a moment ago)


def measured(folder: Path) -> Measured:
    """Run it, here; as a worker does, each raw is let go once reduced, the context once the template is warped."""
    keep_freed_memory()
    modules, seconds, products = memory("VmRSS"), [], None
    for _ in range(REPEATS + 1):
        del products
        times, seen, snaps = StageTimes(), [], []
        contexts = [loaded(folder / "0.pickle")]
        for snap in range(SNAPS):
            raw = loaded(folder / f"{1 + snap}.pickle")
            seen.append(raw.observation)
            with times("remove_signature"):
                snaps.append(pipeline.reduce_snap(raw, contexts[0]))
            del raw
        products = pipeline.process_visit(snaps, seen, contexts.pop(), stage=times, processed=0.0)
        seconds.append(times.seconds)
    most = memory("VmHWM")
    plane = products.science.pixels.image
    return Measured(seconds[1:], len(products.sources), plane.size, copy_seconds(plane), modules, most)


def memory(what: str) -> float:
    """MB of this process: VmRSS, in memory now, or VmHWM, at the most (`ru_maxrss` begins with the parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(what)) / 1024.0


def copy_seconds(plane: np.ndarray) -> float:
    """CPU seconds to copy a plane into another one that is there already, the median of nine."""
    target, times = plane.copy(), []
    for _ in range(9):
        clock = StageTimes()
        with clock("copy"):
            np.copyto(target, plane)
        times.append(clock.seconds["copy"])
    return float(np.median(times))


def main() -> None:
    """Measure in a new process, print the table."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        prepared(seed, Path(folder))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            told = own.submit(measured, Path(folder)).result()
    rate = 8.0 * told.pixels / told.copy
    print(f"{'stage':18s} {'core-s':>7s} {'spread':>7s} {'GB/s':>6s} {'copies':>7s}")
    for name in told.seconds[0]:
        spent = np.array([each[name] for each in told.seconds])
        moved = BYTES_PER_PIXEL.get(name, 0) * told.pixels
        median = float(np.median(spent))
        rates = f"{moved / median / 1e9:6.1f} {median * rate / moved:7.1f}" if moved else ""
        print(f"{name:18s} {median:7.3f} {np.ptp(spent):7.3f} {rates}")
    total = [sum(each.values()) for each in told.seconds]
    print(f"{'all':18s} {np.median(total):7.3f} {np.ptp(total):7.3f}, {told.n_sources} DIASources")
    print(f"a plain copy: {rate / 1e9:.1f} GB/s, read and written")
    print(f"memory, MB: modules {told.modules:.0f}, at the most {told.most:.0f}")


if __name__ == "__main__":
    main()
