"""A CCD as built: what its amplifiers and pixels do to light, fixed by (seed, instrument, detector)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image, Mask, MaskPlane
from schemas.instrument import BANDS, Amplifier, Detector
from simulators.camera.noise import Purpose, State, fill_normal, generator, stream
from simulators.camera.optics import field_position, vignetting

Floats = NDArray[np.float64]
Pixel = TypeVar("Pixel", bound=np.generic)

AMPLIFIERS = 16
SATURATION_PART = 0.95
"""Of the full well: from here on calibration calls a pixel saturated."""
ADC_MAX = (1 << 18) - 1
_PIXEL_SCATTER = 0.004
"""Relative, of the pixels' areas (photo-response non-uniformity)."""
_VIGNETTED_BELOW = 0.7
_VIGNETTING_STEP = 64


@dataclass(frozen=True, eq=False)
class Ccd:
    """One detector's electronics and flaws, per amplifier (16,) unless said.

    gain: electrons/ADU. read_noise, full_well: electrons. level: ADU of no signal. dark: electrons/s/pixel.
    crosstalk: (16, 16), from j into i at [i, j]. bias_rows (16, amp_height), bias_columns (16, amp_width):
    electrons, their sum the bias pattern. step: relative throughput. dust (n, 4): x, y, radius (pixels),
    depth. columns (n, 4): x, y0, y1, response of bad columns. hot (n, 3): x, y, electrons/s. compression
    (16, 3), c: a charge q of x full wells is read as q (1 + c0 x + c1 x^2 + c2 x^3).
    """

    detector: Detector
    gain: Floats
    read_noise: Floats
    full_well: Floats
    level: Floats
    dark: Floats
    crosstalk: Floats
    bias_rows: Image
    bias_columns: Image
    step: Floats
    dust: Floats
    columns: Floats
    hot: Floats
    compression: Floats
    seeds: tuple[int, int]


@lru_cache(maxsize=256)
def ccd(seed: int, instrument: str, detector: Detector) -> Ccd:
    """The CCD in a focal plane's place."""
    names = (sum(instrument.encode()), detector.id)
    rng = generator(seed, Purpose.CCD, *names)
    form = detector.format
    n_columns, n_hot = rng.poisson(3), rng.poisson(60)
    start = rng.integers(0, form.height, n_columns)
    edge = np.where(start < form.amp_height, form.amp_height, form.height)
    return Ccd(
        detector=detector,
        gain=rng.normal(1.5, 0.06, AMPLIFIERS),
        read_noise=rng.uniform(5.0, 9.0, AMPLIFIERS),
        full_well=rng.uniform(95e3, 110e3, AMPLIFIERS),
        level=rng.uniform(20e3, 25e3, AMPLIFIERS),
        dark=rng.uniform(0.01, 0.04, AMPLIFIERS),
        crosstalk=_crosstalk(rng),
        bias_rows=_profiles(rng, form.amp_height, 3.0),
        bias_columns=_profiles(rng, form.amp_width, 5.0),
        step=rng.normal(1.0, 0.008, AMPLIFIERS),
        dust=rng.uniform((0, 0, 15, 0.005), (form.width, form.height, 60, 0.03), (8, 4)),
        columns=np.stack([rng.integers(0, form.width, n_columns), start, edge, rng.uniform(0.1, 0.6, n_columns)], 1),
        hot=rng.uniform((0, 0, 5.0), (form.width, form.height, 300.0), (n_hot, 3)),
        compression=_compression(rng),
        seeds=(seed, names[0]),
    )


def _crosstalk(rng: np.random.Generator) -> Floats:
    """Neighbours on the same half couple most, the rest a little, some of it negative."""
    index = np.arange(AMPLIFIERS)
    apart = np.abs(np.subtract.outer(index, index))
    same_half = np.equal.outer(index // 8, index // 8)
    size = np.where(same_half & (apart == 1), 4e-4, np.where(same_half & (apart == 2), 8e-5, 1e-5))
    matrix = size * np.where(apart == 1, rng.uniform(0.5, 2.0, size.shape), rng.normal(0.0, 1.0, size.shape))
    np.fill_diagonal(matrix, 0.0)
    return np.asarray(matrix)


def _compression(rng: np.random.Generator) -> Floats:
    """(16, 3): an output transistor's loss of 0.4 to 1 % at full well, and a wave of a tenth of it on the way."""
    loss = rng.uniform(0.004, 0.010, AMPLIFIERS)
    wave = rng.normal(0.0, 0.01, AMPLIFIERS)  # x (1 - x) (1 - 2 x) has its extremes of a tenth
    return np.asarray(loss[:, None] * np.array([-1.0, 0.0, 0.0]) + wave[:, None] * np.array([1.0, -3.0, 2.0]))


def _profiles(rng: np.random.Generator, length: int, size: float) -> Image:
    """(16, length): a transient at the first pixels read and a wave, electrons."""
    k = np.arange(length)
    settle = rng.normal(0.0, 2.0 * size, (AMPLIFIERS, 1)) * np.exp(-k / rng.uniform(8.0, 40.0, (AMPLIFIERS, 1)))
    phase, waves = rng.uniform(0.0, 2.0 * np.pi, (AMPLIFIERS, 1)), rng.uniform(0.5, 4.0, (AMPLIFIERS, 1))
    wave = 0.3 * size * np.sin(phase + 2.0 * np.pi * waves * k / length)
    return (settle + wave + rng.normal(0.0, 0.1 * size, (AMPLIFIERS, length))).astype(np.float32)


def view(image: NDArray[Pixel], amplifier: Amplifier, shape: tuple[int, int]) -> NDArray[Pixel]:
    """An amplifier's part of an assembled image, in the raw's order of rows and columns; no copy."""
    part = image[amplifier.y0 : amplifier.y0 + shape[0], amplifier.x0 : amplifier.x0 + shape[1]]
    return part[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]


def response(chip: Ccd, band: str) -> Image:
    """(ny, nx): how much of the light each pixel turns into signal, 1 for a perfect one on the axis."""
    form = chip.detector.format
    result = np.empty((form.height, form.width), np.float32)
    grain = stream(chip.seeds[0], Purpose.RESPONSE, chip.seeds[1], chip.detector.id)
    _grain(
        result,
        _coarse_vignetting(chip.detector),
        _steps(chip, band),
        grain,
        _VIGNETTING_STEP,
        _PIXEL_SCATTER,
    )
    for x, y, radius, depth in chip.dust:
        _shade(result, x, y, radius, depth)
    for x, y0, y1, part in chip.columns:
        result[int(y0) : int(y1), int(x)] *= part
    return result


def _steps(chip: Ccd, band: str) -> Floats:
    """(2, 8), bottom and top: the amplifiers' throughput, a little different in each band."""
    color = 1.0 + 0.1 * (BANDS.index(band) - 2.5)
    step = 1.0 + (chip.step - 1.0) * color
    grid = np.empty((2, 8))
    for amplifier in chip.detector.amplifiers:
        form = chip.detector.format
        grid[amplifier.y0 // form.amp_height, amplifier.x0 // form.amp_width] = step[amplifier.index]
    return grid


def _coarse_vignetting(detector: Detector) -> Floats:
    form = detector.format
    x = np.arange(0, form.width + _VIGNETTING_STEP, _VIGNETTING_STEP, dtype=np.float64)
    y = np.arange(0, form.height + _VIGNETTING_STEP, _VIGNETTING_STEP, dtype=np.float64)
    return vignetting(*field_position(detector, *np.meshgrid(x, y)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grain(out: Image, coarse: Floats, steps: Floats, state: State, spacing: int, scatter: float) -> None:
    """Vignetting (interpolated between its nodes) x the amplifier's step x each pixel's own area."""
    ny, nx = out.shape
    shade = np.empty(nx, np.float32)
    width = nx // 8
    for y in range(ny):
        node, part = y // spacing, (y % spacing) / spacing
        half = 0 if y < ny // 2 else 1
        for x0 in range(0, nx, spacing):
            left = coarse[node, x0 // spacing] * (1.0 - part) + coarse[node + 1, x0 // spacing] * part
            right = coarse[node, x0 // spacing + 1] * (1.0 - part) + coarse[node + 1, x0 // spacing + 1] * part
            for x in range(x0, min(nx, x0 + spacing)):
                shade[x] = left + (right - left) * (x - x0) / spacing
        for k in range(8):
            shade[k * width : (k + 1) * width] *= steps[half, k]
        fill_normal(state, out[y])
        for x in range(nx):
            out[y, x] = shade[x] * (np.float32(1.0) + np.float32(scatter) * out[y, x])


def _shade(image: Image, x: float, y: float, radius: float, depth: float) -> None:
    """A speck of dust out of focus: the pupil's ring."""
    y0, x0 = max(0, int(y - radius)), max(0, int(x - radius))
    part = image[y0 : int(y + radius) + 1, x0 : int(x + radius) + 1]
    dy, dx = np.ogrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
    r = np.hypot(dx - x, dy - y) / radius
    part *= np.where((r < 1.0) & (r > 0.6), 1.0 - depth, 1.0).astype(np.float32)


def add_dark_current(charge: Image, chip: Ccd, seconds: float) -> None:
    """Add what gathers in the dark to the charge (electrons, ny x nx), in place."""
    form = chip.detector.format
    for amplifier in chip.detector.amplifiers:
        part = view(charge, amplifier, (form.amp_height, form.amp_width))
        part += np.float32(chip.dark[amplifier.index] * seconds)
    for x, y, rate in chip.hot:
        charge[int(y), int(x)] += rate * seconds


def bias_pattern(chip: Ccd) -> Image:
    """(ny, nx), electrons."""
    form = chip.detector.format
    result = np.empty((form.height, form.width), np.float32)
    for amplifier in chip.detector.amplifiers:
        rows, columns = chip.bias_rows[amplifier.index], chip.bias_columns[amplifier.index]
        view(result, amplifier, (form.amp_height, form.amp_width))[:] = rows[:, None] + columns[None, :]
    return result


def defects(chip: Ccd) -> MaskPlane:
    """(ny, nx): BAD for bad columns and hot pixels, VIGNETTED where less than 0.7 of the light arrives."""
    form = chip.detector.format
    plane = np.zeros((form.height, form.width), np.uint16)
    coarse = _coarse_vignetting(chip.detector) < _VIGNETTED_BELOW
    if coarse.any():
        fine = coarse.repeat(_VIGNETTING_STEP, 0).repeat(_VIGNETTING_STEP, 1)[: form.height, : form.width]
        plane[fine] |= np.uint16(Mask.VIGNETTED)
    for x, y0, y1, _ in chip.columns:
        plane[int(y0) : int(y1), int(x)] |= np.uint16(Mask.BAD)
    for x, y, _ in chip.hot:
        plane[int(y), int(x)] |= np.uint16(Mask.BAD)
    return plane
