"""What calibration products cost, and how near they come to what the simulator put in.

    python -m bench.calibration_products [DETECTOR ...]

For each detector an afternoon, 10 biases, 5 darks of 30 s and 10 flats of 2 s, and what is taken each month, 4
exposures of spots and a ladder of 10 pairs of flats. Raws are made in a process of their own, one at a time.
Core-seconds: of this process, with the kernels loaded. Memory: the most resident of this process while the product is
made, less what it held before.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.allocator import keep_freed_memory
from payloads.calibration.assemble import assemble
from payloads.calibration.bias import Bias, make_bias
from payloads.calibration.crosstalk import Crosstalk, measure_crosstalk
from payloads.calibration.dark import Dark, make_dark
from payloads.calibration.defects import Defects, find_defects
from payloads.calibration.flat import Flat, make_flat
from payloads.calibration.photon_transfer import PhotonTransfer, measure_photon_transfer
from payloads.calibration.verify import verify
from schemas.identity import exposure_id, image_name
from schemas.image import Image, Mask, Observation, Raw
from schemas.instrument import Detector, Format, camera
from simulators.camera import calibrations
from simulators.camera.ccd import Ccd, add_dark_current, bias_pattern, ccd, defects, response
from simulators.camera.sensor import read_out

T = TypeVar("T")
SEED, DAY = 1, 20260705
LADDER = (0.1, 0.4, 1.0, 1.8, 2.6, 3.4, 4.3, 6.0, 9.0, 16.0)
SMALL = replace(camera("LSSTCam")[94], format=Format("E2V", 96, 160, 10, 54, 6))
FIRST = {"bias": 0, "dark": 100, "flat": 200, "spot": 300}
AXIS_RATE = calibrations.LAMP_RATE


def observation(kind: str, number: int, seconds: float, group: int | None = None) -> Observation:
    """The number-th exposure of a kind; those of a group see one level of the lamp."""
    exposure = exposure_id(DAY, FIRST[kind] + number)
    return Observation(
        instrument="LSSTCam", group="g", visit=exposure if group is None else exposure_id(DAY, 1000 + group),
        exposure=exposure, snap=number, n_snaps=1, image_name=image_name(DAY, FIRST[kind] + number),
        physical_filter="r_57", band="r", ra=0.0, dec=0.0, rotation=0.0, exposure_time=seconds, started=0.0,
        readout_ended=seconds + 2.0, image_type=kind,
    )  # fmt: skip


@lru_cache(maxsize=1)
def light_of(detector: Detector) -> Image:
    """The response, kept for the next exposure."""
    return response(ccd(SEED, "LSSTCam", detector), "r")


def expose(seen: Observation, detector: Detector) -> Raw:
    """A raw, made in the other process."""
    chip = ccd(SEED, "LSSTCam", detector)
    charge = calibrations.charge(SEED, seen, chip, lambda: light_of(detector))
    return Raw.of(seen, detector.id, read_out(charge, chip, SEED, seen.exposure))


class Telescope:
    """Exposes a detector, in another process."""

    def __init__(self, detector: Detector, process: ProcessPoolExecutor) -> None:
        self._detector, self._process = detector, process

    def take(self, seen: Observation) -> Raw:
        """One raw."""
        return self._process.submit(expose, seen, self._detector).result()

    def raws(self, kind: str, n: int, seconds: float) -> Iterator[Raw]:
        """Raws of a kind, one at a time."""
        return (self.take(observation(kind, number, seconds)) for number in range(n))

    def pairs(self) -> Iterator[tuple[Raw, Raw]]:
        """The ladder."""
        for k, seconds in enumerate(LADDER):
            one, other = (observation("flat", 20 + 2 * k + i, seconds, k) for i in (0, 1))
            yield self.take(one), self.take(other)


def memory(what: str) -> float:
    """MB of this process: VmRSS, in memory now, or VmHWM, at the most since it was last forgotten."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(what)) / 1024.0


def measured(name: str, frames: int, make: Callable[[], T]) -> T:
    """Make a product, print what it cost."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, started = memory("VmRSS"), process_time()
    made = make()
    spent = process_time() - started
    print(f"{name:18s} {frames:6d} {spent:7.2f} {memory('VmHWM') - before:8.0f}", flush=True)
    return made


def produced(telescope: Telescope, detector: Detector, *, told: bool) -> tuple[object, ...]:
    """All products of a detector, in their order."""

    def each(name: str, frames: int, make: Callable[[], T]) -> T:
        return measured(name, frames, make) if told else make()

    bias: Bias = each("bias", 10, lambda: make_bias(telescope.raws("bias", 10, 0.0), detector))
    crosstalk: Crosstalk = each(
        "crosstalk", 4, lambda: measure_crosstalk(telescope.raws("spot", 4, 1.0), detector, bias)
    )
    transfer: PhotonTransfer = each(
        "photon transfer", 20, lambda: measure_photon_transfer(telescope.pairs(), detector, bias, crosstalk)
    )
    electronics = transfer.electronics(crosstalk)
    dark: Dark = each("dark", 5, lambda: make_dark(telescope.raws("dark", 5, 30.0), detector, bias, electronics))
    flat: Flat = each(
        "flat", 10, lambda: make_flat(telescope.raws("flat", 10, 2.0), detector, "r", bias, dark, electronics)
    )
    found: Defects = each("defects", 0, lambda: find_defects(detector, bias, dark, flat, AXIS_RATE))
    each("assemble", 0, lambda: assemble(detector, bias, dark, flat, found, electronics))
    products = (bias, crosstalk, transfer, dark, flat, found)
    each("verify", 0, lambda: [verify(product) for product in products])
    return products


def against_truth(chip: Ccd, products: tuple[object, ...]) -> None:
    """Print how far each is from what was put in, and the checks that it fails."""
    bias, crosstalk, transfer, dark, flat, found = products
    assert isinstance(bias, Bias)
    assert isinstance(crosstalk, Crosstalk)
    assert isinstance(transfer, PhotonTransfer)
    assert isinstance(dark, Dark)
    assert isinstance(flat, Flat)
    assert isinstance(found, Defects)
    gain = transfer.gain.astype(np.float32)
    off = bias.in_electrons(gain, chip.detector) - bias_pattern(chip)
    print(f"bias: rms error {off.std():.2f} electrons, mean {off.mean():+.3f}")
    current = np.zeros_like(off)
    add_dark_current(current, chip, 1.0)
    pull = (dark.pixels.image - current)[current < 1.0]
    print(f"dark: rms error {pull.std():.3f} electrons/s, mean {pull.mean():+.4f}")
    lit = light_of(chip.detector)
    ratio = flat.pixels.image / (lit / lit.mean(dtype=np.float64)) - 1.0
    good = found.plane & Mask.BAD == 0
    print(f"flat: rms relative error {ratio[good].std():.5f}, mean {ratio[good].mean(dtype=np.float64):+.6f}")
    built = defects(chip)
    for bit in (Mask.BAD, Mask.VIGNETTED):
        have, want = found.plane & bit != 0, built & bit != 0
        missed, more = int(np.sum(want & ~have)), int(np.sum(have & ~want))
        print(f"defects: {bit.name}: {int(want.sum())} built in, {missed} missed, {more} more")
    print(f"gain: largest relative error {np.abs(transfer.gain / chip.gain - 1).max():.5f}", end="")
    print(f" (own estimate {transfer.gain_error.max():.5f})")
    print(f"read noise: largest relative error {np.abs(transfer.read_noise / chip.read_noise - 1).max():.5f}")
    full = chip.full_well * (1.0 + chip.compression.sum(axis=1))
    print(f"full well: largest relative error {np.abs(transfer.full_well / full - 1).max():.5f}")
    print(f"linearity: largest relative error {linearity_error(chip, transfer.linearity):.6f}", end="")
    print(f" (own estimate {transfer.curve_error.max():.6f})")
    truth = chip.crosstalk * chip.gain[None, :] / chip.gain[:, None]
    error, large = np.abs(crosstalk.matrix - truth), np.abs(truth) > 3e-5
    print(f"crosstalk: largest relative error above 3e-5 {(error[large] / np.abs(truth[large])).max():.4f}", end="")
    print(f", largest error {error.max():.2e} (own estimate {crosstalk.error.max():.2e})")
    for product in (bias, crosstalk, transfer, dark, flat, found):
        for check in verify(product):
            if not check.passed:
                print(f"fails: {check.name}: {check.value:.4g} is not in {check.low:g}..{check.high:g}")


def linearity_error(chip: Ccd, linearity: NDArray[np.float64]) -> float:
    """The largest relative error of a charge from 500 electrons to the full well."""
    worst = 0.0
    for well, curve, inverse in zip(chip.full_well, chip.compression, linearity, strict=True):
        charge = np.linspace(500.0, well, 300)
        shown = charge * (1.0 + sum(c * (charge / well) ** (k + 1) for k, c in enumerate(curve)))
        back = shown * (1.0 + sum(c * (shown / 1e5) ** (k + 1) for k, c in enumerate(inverse)))
        worst = max(worst, float(np.abs(back / charge - 1.0).max()))
    return worst


def main() -> None:
    """Print the tables."""
    keep_freed_memory()
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        produced(Telescope(SMALL, process), SMALL, told=False)
        for number in [int(text) for text in sys.argv[1:]] or [94, 0]:
            detector = camera("LSSTCam")[number]
            print(f"\n{detector.name}, {detector.format.vendor}, {detector.format.width} x {detector.format.height}")
            print(f"{'product':18s} {'frames':>6s} {'core-s':>7s} {'MB more':>8s}")
            products = produced(Telescope(detector, process), detector, told=True)
            against_truth(ccd(SEED, "LSSTCam", detector), products)


if __name__ == "__main__":
    main()
