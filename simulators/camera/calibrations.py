"""Calibration exposures: a CCD in the dark, under the dome's lamp, or under a projector of spots.

What each is, its observation says: `image_type`, `exposure_time` (the lamp burns steadily, so that the time sets
the level), the visit (flats of one visit are taken under one level of the lamp, which another visit finds
changed), and for spots the snap, which moves them.
"""

from collections.abc import Callable

import numpy as np

from schemas.errors import BadData
from schemas.image import IMAGE_TYPES, SCIENCE, Image, Observation, Raw
from schemas.instrument import ITL, Detector
from simulators.camera import hits, sensor
from simulators.camera.ccd import AMPLIFIERS, Ccd, add_dark_current, ccd, response, view
from simulators.camera.noise import Purpose, generator

LAMP_RATE = 20_000.0
"""Electrons/s in a pixel that loses nothing, at the lamp's usual level."""
LAMP_DRIFT = 0.01
"""Relative, from visit to visit: nobody is told of it."""
SPOT_ELECTRONS = 8e4
_WHOLE = ITL.width * ITL.height
_STRAY_PART = 5e-4
"""Of the spots' light, anywhere between them."""
_SPOTS_ACROSS = 4
_SPOT_RADIUS, _SPOT_EDGE = 0.36, 0.04
"""Of the distance between spots."""


def charge(seed: int, observation: Observation, chip: Ccd, throughput: Callable[[], Image]) -> Image:
    """(ny, nx), electrons at the end of the exposure, expected: no noise, but bled.

    `throughput`: gives the response in the observation's band; called only for light. Raises BadData for an
    image type that is none of a calibration.
    """
    form = chip.detector.format
    kind, seconds = observation.image_type, observation.exposure_time
    if kind == SCIENCE or kind not in IMAGE_TYPES:
        raise BadData(f"{observation.image_name}: no calibration is of type {kind!r}")
    result = np.zeros((form.height, form.width), np.float32)
    if kind == "flat":
        result += throughput() * np.float32(lamp_level(seed, observation) * LAMP_RATE * seconds)
    elif kind == "spot":
        result += throughput() * _spots(chip.detector, observation.snap)
    if kind != "bias":
        add_dark_current(result, chip, seconds)
        size = min(1.0, result.size / _WHOLE)  # a piece of a detector is hit less often
        hits.add_cosmic_rays(result, seed, observation.exposure, chip.detector.id, seconds * size)
    sensor.bleed(result, chip)
    return result


def raw(seed: int, observation: Observation, detector: Detector) -> Raw:
    """The calibration exposure of a CCD as it is read."""
    chip = ccd(seed, observation.instrument, detector)
    light = charge(seed, observation, chip, lambda: response(chip, observation.band))
    return Raw.of(observation, detector.id, sensor.read_out(light, chip, seed, observation.exposure))


def lamp_level(seed: int, observation: Observation) -> float:
    """The lamp in a visit, in units of its usual level."""
    return float(generator(seed, Purpose.LAMP, observation.visit).normal(1.0, LAMP_DRIFT))


def _spots(detector: Detector, shift: int) -> Image:
    """(ny, nx), electrons: a grid of round spots on each amplifier, at other places than on any other.

    Places are counted in the order of readout, so that what is read at the same moment is lit in one amplifier.
    """
    form = detector.format
    pitch = form.amp_width / _SPOTS_ACROSS
    y, x = np.mgrid[: form.amp_height, : form.amp_width].astype(np.float32)
    column, row = (x // pitch).astype(np.int64), (y // pitch).astype(np.int64)
    radius = np.hypot(x - (column + 0.5) * pitch, y - (row + 0.5) * pitch) / pitch
    shape = SPOT_ELECTRONS / (1.0 + np.exp(np.clip((radius - _SPOT_RADIUS) / (_SPOT_EDGE / 4.0), -50.0, 50.0)))
    turn = (row * _SPOTS_ACROSS + column) * 5 + shift
    result = np.full((form.height, form.width), SPOT_ELECTRONS * _STRAY_PART, np.float32)
    for amplifier in detector.amplifiers:
        part = view(result, amplifier, (form.amp_height, form.amp_width))
        part += np.where(turn % AMPLIFIERS == amplifier.index, shape, 0.0).astype(np.float32)
    return result
