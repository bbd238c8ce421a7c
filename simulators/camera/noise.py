"""Random numbers, reproducible to the bit: seeds by name, and fast normal deviates for whole detectors.

The generator is xoshiro256++ (Blackman & Vigna 2021, ACM Trans. Math. Softw. 47, 36); normal deviates are
drawn by the ziggurat of 128 layers (Marsaglia & Tsang 2000, J. Stat. Softw. 5, 8).
"""

from collections.abc import Iterator
from enum import IntEnum

import numba
import numpy as np
from numpy.typing import NDArray

State = NDArray[np.uint64]
"""(4,): where a generator stands. Kernels advance it in place."""


class Purpose(IntEnum):
    """What random numbers are for: each purpose has its own stream, so that one more draw shifts no other."""

    CONDITIONS = 1
    DISTORTION = 2
    FOCUS = 3
    CCD = 4
    RESPONSE = 5
    READOUT = 6
    COSMIC_RAYS = 7
    STREAKS = 8
    CALIBRATION = 9
    TEMPLATE = 10
    DRIFT = 11
    LAMP = 12


def generator(seed: int, purpose: Purpose, *names: int) -> np.random.Generator:
    """NumPy's generator for the few numbers of a purpose, named by ids (exposure, detector, ...)."""
    return np.random.default_rng([seed, int(purpose), *names])


def stream(seed: int, purpose: Purpose, *names: int) -> State:
    """The starting state of a fast stream for the many numbers of a purpose."""
    state: State = np.random.SeedSequence([seed, int(purpose), *names]).generate_state(8).view(np.uint64)
    return state


_LAYERS = 128
_TAIL = 3.442619855899
_AREA = 9.91256303526217e-3
_SCALE = 2.0**24


def _edges() -> Iterator[float]:
    """Where the layers end, from the base upwards (Marsaglia & Tsang's recurrence)."""
    x = _TAIL
    yield _AREA / np.exp(-0.5 * x * x)
    yield x
    for _ in range(_LAYERS - 2):
        x = np.sqrt(-2.0 * np.log(_AREA / x + np.exp(-0.5 * x * x)))
        yield x
    yield 0.0


_EDGE = np.array(list(_edges()))
_HEIGHT = np.exp(-0.5 * _EDGE * _EDGE)
_WIDTH = (_EDGE[:-1] / _SCALE).astype(np.float32)
_INSIDE = (_EDGE[1:] / _EDGE[:-1] * _SCALE).astype(np.int32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def next_bits(state: State) -> np.uint64:
    """64 random bits."""
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    sum_ = s0 + s3
    result = ((sum_ << np.uint64(23)) | (sum_ >> np.uint64(41))) + s0
    shifted = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= shifted
    s3 = (s3 << np.uint64(45)) | (s3 >> np.uint64(19))
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return np.uint64(result)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _uniform(state: State) -> float:
    """In (0, 1]."""
    return (float(next_bits(state) >> np.uint64(11)) + 1.0) * 2.0**-53


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _outside(state: State, number: int, layer: int) -> np.float32:
    """The rare deviates beyond a layer's rectangle: the tail, the wedge, or another throw."""
    while True:
        x = number * _WIDTH[layer]
        if layer == 0:
            while True:
                beyond = -np.log(_uniform(state)) / _TAIL
                if -2.0 * np.log(_uniform(state)) >= beyond * beyond:
                    return np.float32(_TAIL + beyond if number > 0 else -_TAIL - beyond)
        low, high = _HEIGHT[layer], _HEIGHT[layer + 1]
        if low + _uniform(state) * (high - low) < np.exp(-0.5 * x * x):
            return np.float32(x)
        bits = int(np.int32(next_bits(state) >> np.uint64(32)))
        layer, number = bits & 127, bits >> 7
        if abs(number) < _INSIDE[layer]:
            return np.float32(number * _WIDTH[layer])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def fill_normal(state: State, out: NDArray[np.float32]) -> None:
    """Fill `out` (n,) with standard normal deviates."""
    pair = np.uint64(0)
    for k in range(out.size):
        pair = next_bits(state) if k % 2 == 0 else pair >> np.uint64(32)
        bits = np.int32(pair & np.uint64(0xFFFFFFFF))
        layer, number = bits & np.int32(127), bits >> np.int32(7)
        if abs(number) < _INSIDE[layer]:
            out[k] = number * _WIDTH[layer]
        else:
            out[k] = _outside(state, int(number), int(layer))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def add_noise(state: State, image: NDArray[np.float32], sigma: float) -> None:
    """Add normal deviates of one width to an image (ny, nx), in place."""
    line = np.empty(image.shape[1], np.float32)
    for row in range(image.shape[0]):
        fill_normal(state, line)
        for k in range(line.size):
            image[row, k] += np.float32(sigma) * line[k]
