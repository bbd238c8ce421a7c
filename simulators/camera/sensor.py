"""From charge to raw numbers, in the order in which nature does it.

Light becomes charge (response, dark current, cosmic rays), charge above the full well bleeds along its
column, the amplifiers turn it into a signal a little less than in proportion, on top of their bias pattern,
hear each other (crosstalk), add their noise, and digitise it above their level. Shot noise is drawn as a
normal deviate of the charge's variance together with the read noise: at the faintest skies (15 electrons)
the skewness that this leaves out is 0.05. A saturated pixel has read noise only. Left out: charge transfer
inefficiency, brighter-fatter effect.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from schemas.image import Image
from simulators.camera.ccd import ADC_MAX, AMPLIFIERS, Ccd
from simulators.camera.noise import Purpose, State, fill_normal, generator, stream

Segments = NDArray[np.int32]
Floats = NDArray[np.float64]

_DRIFT_ADU = 2.0


def bleed(charge: Image, chip: Ccd) -> None:
    """Let the charge (electrons, ny x nx) above the full well run along the columns, half each way, in place.

    It stops where there is room, passes the midline, and is lost beyond the ends.
    """
    form = chip.detector.format
    wells = np.empty((2, 8), np.float32)
    for amplifier in chip.detector.amplifiers:
        wells[amplifier.y0 // form.amp_height, amplifier.x0 // form.amp_width] = chip.full_well[amplifier.index]
    _bleed(charge, wells)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bleed(charge: Image, wells: Image) -> None:
    ny, nx = charge.shape
    lowest = wells.min()
    most = np.zeros(nx, np.float32)
    for y in range(ny):
        for x in range(nx):
            most[x] = max(most[x], charge[y, x])
    excess = np.zeros(ny)
    for x in range(nx):
        if most[x] <= lowest:
            continue
        for y in range(ny):
            well = wells[0 if y < ny // 2 else 1, x // (nx // 8)]
            excess[y] = max(0.0, charge[y, x] - well)
            charge[y, x] = min(charge[y, x], well)
        for way in range(2):
            carried = 0.0
            for k in range(ny):
                y = k if way == 0 else ny - 1 - k
                well = wells[0 if y < ny // 2 else 1, x // (nx // 8)]
                carried += 0.5 * excess[y]
                taken = min(carried, well - charge[y, x])
                charge[y, x] += np.float32(taken)
                carried -= taken


def read_out(charge: Image, chip: Ccd, seed: int, exposure: int) -> Segments:
    """The raw, int32 (16, rows, columns) ADU, of a charge (electrons, ny x nx) that has bled."""
    detector = chip.detector
    form = detector.format
    state = stream(seed, Purpose.READOUT, exposure, detector.id)
    corners = np.array([(a.x0, a.y0, a.flip_x, a.flip_y) for a in detector.amplifiers], np.int64)
    segments = np.empty(form.raw_shape, np.int32)
    _read_out(
        charge, corners, chip.bias_rows, chip.bias_columns, chip.crosstalk.astype(np.float32),
        (chip.read_noise**2).astype(np.float32), chip.full_well.astype(np.float32), _per_electron(chip),
        (1.0 / chip.gain).astype(np.float32), row_levels(chip, seed, exposure), form.prescan, state, segments,
    )  # fmt: skip
    return segments


def _per_electron(chip: Ccd) -> Image:
    """(16, 3): the compression's coefficients of powers of electrons."""
    return (chip.compression / chip.full_well[:, None] ** np.arange(1, 4)).astype(np.float32)


def row_levels(chip: Ccd, seed: int, exposure: int) -> Image:
    """(16, rows), ADU: each amplifier's level, drifting from row to row, partly in step with all others."""
    rng = generator(seed, Purpose.DRIFT, exposure, chip.detector.id)
    rows = chip.detector.format.raw_shape[1]
    steps = rng.normal(0.0, 1.0, (AMPLIFIERS + 1, rows))
    wander = np.cumsum(steps, axis=1) / np.sqrt(rows)
    common, own = wander[-1], wander[:-1]
    jitter = 0.15 * rng.normal(0.0, 1.0, (AMPLIFIERS, rows))
    levels: Image = (chip.level[:, None] + _DRIFT_ADU * (own + 0.5 * common) + jitter).astype(np.float32)
    return levels


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _read_out(
    charge: Image, corners: NDArray[np.int64], bias_rows: Image, bias_columns: Image, crosstalk: Image,
    read_variance: Image, full_well: Image, compression: Image, per_gain: Image, levels: Image, prescan: int,
    state: State, out: Segments,
) -> None:  # fmt: skip
    n_amps, rows, columns = out.shape
    height, width = bias_rows.shape[1], bias_columns.shape[1]
    data = slice(prescan, prescan + width)
    signal = np.zeros((n_amps, columns), np.float32)
    noise = np.empty((n_amps, columns), np.float32)
    for row in range(rows):
        fill_normal(state, noise.reshape(-1))
        if row == height:
            signal[:] = 0.0
        for i in range(n_amps):
            sigma = np.sqrt(read_variance[i])
            if row >= height:
                noise[i] *= sigma
                continue
            noise[i, :prescan] *= sigma
            noise[i, prescan + width :] *= sigma
            x0, y0, flip_x, flip_y = corners[i]
            y = y0 + (height - 1 - row if flip_y else row)
            pixels = charge[y, x0 : x0 + width]
            bias = bias_rows[i, row]
            _shift_out(
                pixels,
                flip_x,
                bias,
                bias_columns[i],
                read_variance[i],
                full_well[i],
                compression[i],
                signal[i, data],
                noise[i, data],
            )
        for i in range(n_amps):
            _digitise(signal, noise[i], i, crosstalk[i], per_gain[i], levels[i, row], out[i, row])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shift_out(
    pixels: Image, flip: bool, bias: float, bias_columns: Image, read_variance: float, full_well: float,
    compression: Image, signal: Image, noise: Image,
) -> None:  # fmt: skip
    """A row of an amplifier's charge as its signal, and the noise of both scaled to its size.

    What compresses the charge compresses its shot noise, by the curve's slope.
    """
    width = signal.size
    for k in range(width):
        signal[k] = pixels[width - 1 - k] if flip else pixels[k]
    brim = np.float32(0.999) * full_well
    first, second, third = compression[0], compression[1], compression[2]
    one, two, three, four = np.float32(1.0), np.float32(2.0), np.float32(3.0), np.float32(4.0)
    for k in range(width):
        q = signal[k]
        slope = one + q * (two * first + q * (three * second + q * (four * third)))
        shot = slope * slope * q if q < brim else np.float32(0.0)
        noise[k] *= np.sqrt(shot + read_variance)
        signal[k] = q * (one + q * (first + q * (second + q * third))) + (bias + bias_columns[k])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _digitise(
    signal: Image,
    noise: Image,
    amplifier: int,
    crosstalk: Image,
    per_gain: float,
    level: float,
    out: Segments,
) -> None:
    """A row's signal, what it hears of the others, and its noise, as numbers of the converter."""
    for k in range(noise.size):
        noise[k] += signal[amplifier, k]
    for j in range(signal.shape[0]):
        part = crosstalk[j]
        for k in range(noise.size):
            noise[k] += part * signal[j, k]
    for k in range(noise.size):
        value = np.int32(noise[k] * per_gain + level + np.float32(0.5))  # far above 0: truncation rounds
        out[k] = min(max(value, np.int32(0)), np.int32(ADC_MAX))
