"""How far a subtraction is off, told from what is left of stars of which it is known."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.alert_production.systematics import LEAST, MOST, UNKNOWN, Systematics, measure_systematics
from schemas.image import Difference, Image, Mask, MaskedImage, Psf
from schemas.wcs import Wcs
from tests.payloads.imaging.test_photometry import UNUSABLE, gaussian, psf

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_SPACE = 40
_WCS = Wcs((150.0, 2.0), (0.0, 0.0), np.diag([-5.6e-5, 5.6e-5]))
_AREA = 4 * np.pi * 2.0**2
"""Of the noise, pixels, of a Gaussian PSF of sigma 2."""


@dataclass(frozen=True, eq=False)
class Field:
    """Stars that were taken away from where they are not quite: the difference, what was taken, and the pixels."""

    difference: Difference
    matched: Image
    x: Indices
    y: Indices

    def measured(self, which: slice | NDArray[np.bool_] = slice(None)) -> Systematics:
        return measure_systematics(self.difference, self.matched, self.difference.psf, self.x[which], self.y[which])


def field(side: int, displaced: float, scaled: float, snr: float = 1e4, seed: int = 1) -> Field:
    """side**2 stars, as far off per axis and in flux as two normal deviates of these widths say; noise of 1."""
    rng = np.random.default_rng(seed)
    flux, n = snr * np.sqrt(_AREA), side * _SPACE
    image, matched = np.zeros((2, n, n))
    y, x = (_SPACE * k.ravel() + _SPACE // 2 for k in np.mgrid[:side, :side])
    for cx, cy in zip(x, y, strict=True):
        box, at = np.s_[cy - 20 : cy + 20, cx - 20 : cx + 20], 20.0 + rng.uniform(-0.5, 0.5, 2)
        off, part = rng.normal(0, displaced, 2), rng.normal(0, scaled)
        matched[box] = flux * gaussian(*at, 40)
        image[box] = flux * (1 + part) * gaussian(*(at + off), 40) - matched[box]
    image += rng.normal(0, 1, image.shape)
    pixels = MaskedImage(image.astype(np.float32), np.zeros((n, n), np.uint16), np.ones((n, n), np.float32))
    kernel = Psf(psf(25)[None], 0, (n, n))
    return Field(Difference(pixels, _WCS, kernel, "r", 0.0, 30.0), matched.astype(np.float32), x, y)


@pytest.mark.parametrize(("displaced", "scaled"), [(0.02, 0.01), (0.05, 0.004), (0.08, 0.02)])
def test_the_scatter_of_places_and_of_brightness_is_what_it_was_made_of(displaced: float, scaled: float) -> None:
    found = field(18, displaced, scaled).measured()
    assert found.astrometric == pytest.approx(displaced, rel=0.15)
    assert found.photometric == pytest.approx(scaled, rel=0.2)


def test_what_noise_alone_scatters_is_not_the_subtractions() -> None:
    """At S/N 120 it moves a star by 2 / 120 pixel and scales it by 1 / 120."""
    none = field(18, 0.0, 0.0, snr=120.0).measured()
    assert none.astrometric < 0.7 * 2.0 / 120.0
    assert none.photometric < 0.5 / 120.0
    both = field(18, 0.03, 0.012, snr=120.0).measured()
    assert both.astrometric == pytest.approx(0.03, rel=0.2)
    assert both.photometric == pytest.approx(0.012, rel=0.25)


def test_no_subtraction_is_better_than_the_least_or_worse_than_the_most() -> None:
    assert field(6, 0.0, 0.0).measured() == LEAST
    assert field(6, 0.6, 0.2).measured() == MOST


def test_fewer_than_twenty_stars_cannot_tell() -> None:
    stars = field(5, 0.05, 0.02)
    assert stars.measured(slice(19)) == UNKNOWN
    assert stars.measured(slice(20)) not in {UNKNOWN, LEAST, MOST}
    assert stars.measured(slice(0)) == UNKNOWN


def test_faint_stars_cannot_tell() -> None:
    assert field(6, 0.05, 0.02, snr=90.0).measured() == UNKNOWN


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_stars_with_a_pixel_that_is_no_number_are_left_out(value: float) -> None:
    stars, spoilt = field(8, 0.04, 0.01), np.arange(64) % 3 == 0
    good = stars.measured(~spoilt)
    stars.difference.pixels.image[stars.y[spoilt] + 12, stars.x[spoilt] - 12] = value
    assert_same(stars.measured(), good)


@pytest.mark.parametrize("bit", [bit for bit in Mask if bit & UNUSABLE])
def test_masked_stars_are_left_out(bit: Mask) -> None:
    stars, spoilt = field(8, 0.04, 0.01), np.arange(64) % 3 == 0
    good, pixels = stars.measured(~spoilt), stars.difference.pixels
    at = stars.y[spoilt], stars.x[spoilt]
    pixels.image[at], pixels.mask[at[0] - 12, at[1] + 12] = 1e7, bit
    assert_same(stars.measured(), good)


def test_stars_whose_variance_is_unknown_are_left_out() -> None:
    stars, spoilt = field(8, 0.04, 0.01), np.arange(64) % 3 == 0
    good, pixels = stars.measured(~spoilt), stars.difference.pixels
    pixels.image[stars.y[spoilt], stars.x[spoilt]] = 1e7
    pixels.variance[stars.y[spoilt], stars.x[spoilt]] = np.where(np.arange(spoilt.sum()) % 2, np.nan, np.inf)
    assert_same(stars.measured(), good)


def test_stars_whose_psf_runs_off_the_image_are_left_out() -> None:
    """A PSF that is handed over may be wider than the kernel's stamps are far from the edge."""
    stars = field(7, 0.04, 0.01)
    inside = (np.minimum(stars.x, stars.y) > 30) & (np.maximum(stars.x, stars.y) < 7 * _SPACE - 31)
    wide = Psf(psf(61)[None], 0, stars.matched.shape)
    pixels = stars.difference.pixels
    stars = Field(Difference(pixels, _WCS, wide, "r", 0.0, 30.0), stars.matched, stars.x, stars.y)
    assert inside.sum() == 25
    assert_same(stars.measured(), stars.measured(inside))


def assert_same(found: Systematics, expected: Systematics) -> None:
    assert expected not in {UNKNOWN, LEAST, MOST}
    assert (found.astrometric, found.photometric) == pytest.approx((expected.astrometric, expected.photometric))
