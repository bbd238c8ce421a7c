import numpy as np
from numpy.typing import NDArray

from payloads.drp.blends import Field
from payloads.drp.detect import Peaks
from payloads.drp.missed import find_missed
from schemas.image import Image, Psf
from tests.payloads.drp.object_sky import HALF, kernel

Floats = NDArray[np.float64]

SIZE, NOISE, FWHM = 300, 5.0, 4.0


def one_peak(area: int = 15) -> Peaks:
    """An object at (150, 150) with a square of pixels about it."""
    labels = np.full((SIZE, SIZE), -1, np.int32)
    labels[150 - area : 151 + area, 150 - area : 151 + area] = 0
    at = np.array([150])
    pixels = np.array([(2 * area + 1) ** 2])
    return Peaks(at, at, np.array([200.0], np.float32), np.array([0]), pixels, np.array([0]), labels)


def left_over(*points: tuple[int, int, float], seed: int = 1) -> Image:
    image = np.random.default_rng(seed).normal(0.0, NOISE, (SIZE, SIZE))
    for x, y, flux in points:
        image[y - HALF : y + HALF + 1, x - HALF : x + HALF + 1] += flux * kernel(FWHM)
    return image.astype(np.float32)


def missed(residual: Image, model: float = 0.0, *, galaxy: bool = False) -> Peaks:
    """What is found where a model of a star of flux `model` was taken away."""
    light = residual + left_over((150, 150, model)) - left_over()
    field = Field(light, np.full((SIZE, SIZE), NOISE**2, np.float32), np.ones((SIZE, SIZE), np.bool_))
    psf = Psf(kernel(FWHM)[None].astype(np.float32), 0, (SIZE, SIZE))
    return find_missed([field], [residual], [psf], one_peak(), np.array([galaxy]), np.array([[150.0, 150.0]]))


def test_what_is_left_beside_an_object_is_one_of_its_own_in_the_same_footprint() -> None:
    found = missed(left_over((157, 150, 900.0), (40, 60, 900.0)), 2e4)
    new = sorted(zip(found.x[1:].tolist(), found.y[1:].tolist(), found.footprint[1:].tolist(), strict=True))
    assert [row[2] for row in new] == [1, 0]
    assert np.abs(np.array([row[:2] for row in new]) - [(40, 60), (157, 150)]).max() <= 1
    beside = 1 + found.x[1:].tolist().index(new[1][0])
    assert found.labels[150, 158] == beside
    assert found.labels[150, 152] == 0
    np.testing.assert_array_equal(found.area, np.bincount(found.labels[found.labels >= 0]))


def test_what_a_model_may_be_wrong_by_is_no_object() -> None:
    left = left_over((156, 150, 900.0))
    assert missed(left, 2e4).x.size == 2
    assert missed(left, 2e5, galaxy=True).x.size == 1  # a tenth of a galaxy's light there


def test_what_is_left_at_an_objects_own_place_and_noise_are_none() -> None:
    assert missed(left_over((151, 150, 2000.0))).x.size == 1
    assert missed(left_over(seed=3)).x.size == 1


def test_without_an_object_everything_is_new() -> None:
    left = left_over((100, 120, 900.0))
    none = np.zeros(0, np.int64)
    empty = Peaks(none, none, none.astype(np.float32), none, none, none, np.full((SIZE, SIZE), -1, np.int32))
    field = Field(left, np.full((SIZE, SIZE), NOISE**2, np.float32), np.ones((SIZE, SIZE), np.bool_))
    psf = Psf(kernel(FWHM)[None].astype(np.float32), 0, (SIZE, SIZE))
    found = find_missed([field], [left], [psf], empty, np.zeros(0, np.bool_), np.zeros((0, 2)))
    assert (found.x.size, found.footprint.tolist()) == (1, [0])
