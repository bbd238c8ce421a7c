from dataclasses import replace

import numpy as np
import pytest

from payloads.drp.matching import binned, halved, matched, targets
from schemas.image import Mask
from tests.payloads.drp.small_sky import SIDE, Stars, a_warp, some_stars, with_bits

WIDTHS = (3.6, 4.4, 5.0)


def test_visits_of_one_sky_look_alike_once_matched() -> None:
    stars = some_stars(brightest=1e6)
    halves = [binned(a_warp(k, stars, fwhm=w, noise=0.001)) for k, w in enumerate(WIDTHS)]
    one, two, three = (matched(half, aim) for half, aim in zip(halves, targets(halves), strict=True))
    peak = np.nanmax(three)
    for other in (one, two):
        assert np.nanmax(np.abs(other - three)) < 0.01 * peak


def test_a_sum_is_kept() -> None:
    star = Stars(np.array([270.3]), np.array([268.8]), np.array([1e5]))
    half = binned(a_warp(1, star, noise=0.001))
    assert 4.0 * np.nansum(matched(half, targets([half])[0])) == pytest.approx(1e5, rel=5e-3)


def test_a_visit_of_much_worse_seeing_has_a_target_of_its_own() -> None:
    halves = [binned(a_warp(k, some_stars(), fwhm=w)) for k, w in enumerate((4.0, 4.4, 4.2, 8.0))]
    first, second, third, last = targets(halves)
    assert first is second is third
    assert 4.4 < first.fwhm < 5.0
    assert 8.0 < last.fwhm < 9.0


def test_halves_are_means_of_four_and_say_what_is_spoilt() -> None:
    warp = with_bits(a_warp(1, some_stars()), Mask.CR, slice(11, 12), slice(20, 21))
    warp = with_bits(warp, Mask.HALO, slice(60, 62), slice(20, 22))
    warp.pixels.image[40, 31] = np.nan
    image, flags = halved(warp.pixels)
    expected = warp.pixels.image.astype(np.float64).reshape(SIDE // 2, 2, SIDE // 2, 2)
    np.testing.assert_allclose(image, np.nan_to_num(expected).mean((1, 3)), rtol=1e-4, atol=1e-3)
    assert (int(flags[5, 10]), int(flags[20, 15]), int(np.count_nonzero(flags))) == (
        int(Mask.BAD),
        int(Mask.NO_DATA),
        2,
    )


def test_a_part_lies_where_it_belongs_in_the_grid() -> None:
    warp = a_warp(1, some_stars())
    rows, columns = slice(100, 300), slice(40, 400)
    planes = {name: getattr(warp.pixels, name)[rows, columns] for name in ("image", "mask", "variance")}
    part = binned(replace(warp, x0=40, y0=100, pixels=replace(warp.pixels, **planes)))
    whole = binned(warp)
    here = slice(50, 150), slice(20, 200)
    np.testing.assert_array_equal(part.image[here], whole.image[here])
    assert (part.flags == Mask.NO_DATA).sum() == part.flags.size - 100 * 180


def test_what_is_near_what_is_missing_is_not_compared() -> None:
    warp = with_bits(a_warp(1, some_stars()), Mask.SAT, slice(200, 202), slice(300, 302))
    warp.pixels.image[100:110, 100:110] = np.nan
    half = binned(warp)
    lost = np.isnan(matched(half, targets([half])[0]))
    assert lost[99:102, 149:152].all()
    assert not lost[97, 150]
    assert lost[46:59, 46:59].all()
    assert not lost[44, 50]
    assert lost[:8].all()
    assert not lost[8:44, 8:44].any()
