"""A CCD of few pixels with all that a large one has, and calibration exposures of it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from payloads.calibration.electronics import Electronics
from schemas.image import Observation, Raw
from schemas.instrument import Detector, Format, camera
from simulators.camera import calibrations
from simulators.camera.ccd import SATURATION_PART, Ccd, ccd
from simulators.camera.products import _linearity
from tests.backbone.kept_objects import observation

SEED = 1
SMALL = replace(camera("LSSTCam")[94], format=Format("E2V", 96, 160, 10, 54, 6))
FIRST = {"bias": 0, "dark": 100, "flat": 200, "spot": 300}


def chip(detector: Detector = SMALL) -> Ccd:
    return ccd(SEED, "LSSTCam", detector)


def exposed(kind: str, number: int, seconds: float, *, visit: int | None = None, band: str = "r") -> Observation:
    """The number-th exposure of a kind; each its own visit unless told."""
    first = observation()
    exposure = first.exposure + FIRST[kind] + number
    return replace(
        first, image_type=kind, exposure_time=seconds, exposure=exposure, snap=number, band=band,
        visit=exposure if visit is None else first.exposure + visit,
        image_name=f"MC_O_20260705_{FIRST[kind] + number:06d}",
    )  # fmt: skip


@cache
def raw(kind: str, number: int, seconds: float = 0.0, visit: int | None = None) -> Raw:
    return calibrations.raw(SEED, exposed(kind, number, seconds, visit=visit), SMALL)


def raws(kind: str, n: int, seconds: float = 0.0) -> list[Raw]:
    return [raw(kind, number, seconds) for number in range(n)]


def pairs(ladder: tuple[float, ...]) -> Iterator[tuple[Raw, Raw]]:
    """Two flats of a time, under one lamp."""
    for number, seconds in enumerate(ladder):
        first = 20 + 2 * number
        yield raw("flat", first, seconds, 1000 + number), raw("flat", first + 1, seconds, 1000 + number)


def true_electronics(device: Ccd) -> Electronics:
    return Electronics(
        gain=device.gain.astype(np.float32),
        read_noise=device.read_noise.astype(np.float32),
        saturation=(SATURATION_PART * device.full_well).astype(np.float32),
        crosstalk=device.crosstalk.astype(np.float32),
        linearity=_linearity(device).astype(np.float32),
    )


def true_crosstalk_in_adu(device: Ccd) -> NDArray[np.float64]:
    return device.crosstalk * device.gain[None, :] / device.gain[:, None]


def linearity_error(device: Ccd, linearity: NDArray[np.floating]) -> NDArray[np.float64]:
    """(16,): the largest relative error of a charge, from 500 electrons to the full well, after correction."""
    worst = np.empty(16)
    for a in range(16):
        charge = np.linspace(500.0, device.full_well[a], 300)
        x = charge / device.full_well[a]
        shown = charge * (1.0 + sum(c * x ** (k + 1) for k, c in enumerate(device.compression[a])))
        back = shown * (1.0 + sum(c * (shown / 1e5) ** (k + 1) for k, c in enumerate(linearity[a])))
        worst[a] = np.abs(back / charge - 1.0).max()
    return worst


def spoilt(taken: Raw, segments: NDArray[np.int32]) -> Raw:
    return replace(taken, segments=segments)
