"""What goes wrong between the pixels and whoever reads them, as the DAQ plays it.

silent: nothing is sent. short: half of the amplifiers. corrupt: one pixel differs from what the checksum is of. The
others are pixels as a broken detector has them, and their checksum is right. dark: all 0. saturated: all at the
converter's end. burst, swarm: `SWARMS` point sources more than there are on the sky, at the same pixels in all snaps;
a burst is as many as a visit of the whole camera is expected to have, a swarm too many to be true. cut: the DAQ hears
the observatory, but nobody who reads can reach it.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray

from simulators import faults
from simulators.camera.buffer import Raster
from simulators.camera.ccd import ADC_MAX
from simulators.camera.sensor import Segments
from simulators.ocs.schedule import PlannedVisit

Wrong = Literal["silent", "short", "corrupt", "dark", "saturated", "burst", "swarm"]

SWARMS = {"burst": 10_000, "swarm": 40_000}
_SIGMA = 2.0
"""Width of a swarm's source, pixels: that of stars in seeing of 0.94"."""
_PEAK = 3.0
"""Its height, in widths of the pixels' noise: about S/N 20, too faint to be taken for a star to measure by."""
_REACH = 6
_SPACING = 16
"""Pixels between the places at which it may have sources."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a detector, in one exposure or (None) in all."""

    detector: int
    exposure: int | None
    fault: Wrong


@dataclass(frozen=True)
class Cut:
    """From `since` to `until` (TAI s) nobody can read."""

    since: float
    until: float


def of_night(
    night: Iterable[faults.Fault], plan: Sequence[PlannedVisit], detectors: Sequence[int]
) -> list[Fault | Cut]:
    """What the DAQ plays of a night's faults."""
    found: list[Fault | Cut] = []
    for fault in night:
        if not isinstance(fault, faults.Camera):
            continue
        hit = plan[fault.visit - 1 : fault.visit - 1 + fault.visits]
        if fault.what == "cut":
            found.append(Cut(hit[0].start_tai, hit[-1].start_tai + hit[-1].duration))
            continue
        own = detectors if fault.detector is None else (fault.detector,)
        exposures = [visit.observation(snap).exposure for visit in hit for snap in range(visit.n_snaps)]
        found += [Fault(detector, exposure, fault.what) for exposure in exposures for detector in own]
    return found


def spoilt(raster: Raster, fault: str | None, seed: int) -> Raster:
    """The pixels of a broken detector, with the checksum of them; the same object for any other fault, or none."""
    if fault == "dark":
        return _of(np.zeros_like(raster.segments))
    if fault == "saturated":
        return _of(np.full_like(raster.segments, ADC_MAX))
    if fault in SWARMS:
        return _of(_swarm(raster.segments, SWARMS[fault], seed))
    return raster


def _of(segments: Segments) -> Raster:
    return Raster(segments, hashlib.sha256(segments.data).hexdigest())


def _swarm(segments: Segments, count: int, seed: int) -> Segments:
    """Sources on a grid with gaps, the same for a seed, a fraction of a pixel beside its points."""
    rng = np.random.default_rng(seed)
    amplifiers, rows, columns = segments.shape
    places = np.array(
        [
            (a, y, x)
            for a in range(amplifiers)
            for y in range(_SPACING, rows - _SPACING - 48, _SPACING)
            for x in range(_SPACING, columns - _SPACING - 64, _SPACING)
        ],
        np.float64,
    )
    chosen = places[np.sort(rng.permutation(len(places))[:count])]
    chosen[:, 1:] += rng.uniform(-1.0, 1.0, (len(chosen), 2))
    noise = np.array([_noise(segment) for segment in segments])
    crowded = segments.copy()
    _add(crowded, chosen, _PEAK * noise)
    return crowded


def _noise(segment: NDArray[np.int32]) -> float:
    """Width of the pixels' noise, ADU: of differences of neighbours, by their quartiles."""
    steps = np.diff(segment[::8, 100:400].astype(np.float64), axis=1)
    low, high = np.percentile(steps, (25.0, 75.0))
    return float((high - low) / 1.349 / math.sqrt(2.0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add(segments: Segments, places: NDArray[np.float64], peaks: NDArray[np.float64]) -> None:
    for k in range(len(places)):
        amplifier = int(places[k, 0])
        y0, x0 = int(np.round(places[k, 1])), int(np.round(places[k, 2]))
        for y in range(y0 - _REACH, y0 + _REACH + 1):
            for x in range(x0 - _REACH, x0 + _REACH + 1):
                away = (y - places[k, 1]) ** 2 + (x - places[k, 2]) ** 2
                more = peaks[amplifier] * np.exp(-0.5 * away / (_SIGMA * _SIGMA))
                segments[amplifier, y, x] = min(ADC_MAX, segments[amplifier, y, x] + int(np.round(more)))
