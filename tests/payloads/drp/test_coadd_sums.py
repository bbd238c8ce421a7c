"""The sums' kernels, held to plain NumPy."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from payloads.drp.coadd_psf import BLOCK
from payloads.drp.coadd_sums import Sums, ramp
from payloads.drp.warps import MARGIN, SPOILT, Warp
from schemas.image import Inputs, Mask, MaskedImage
from tests.payloads.drp.small_sky import SIDE, Stars, a_warp
from tests.payloads.planes import NOT_FINITE

BITS = (Mask.SAT, Mask.CR, Mask.BAD, Mask.HALO, Mask.INTRP, Mask.NO_DATA)


def spoilt_warps() -> list[Warp]:
    rng, warps = np.random.default_rng(6), []
    for k, noise in enumerate((10.0, 20.0, 15.0)):
        warp = a_warp(k, Stars(), noise=noise)
        warp.pixels.variance[:] *= rng.uniform(0.9, 1.1, (SIDE, SIDE))
        for bit in BITS:
            warp.pixels.mask[rng.random((SIDE, SIDE)) < 0.3] |= np.uint16(bit)
        for plane in (warp.pixels.image, warp.pixels.variance):
            plane[rng.random((SIDE, SIDE)) < 0.1] = rng.choice(NOT_FINITE)
        warps.append(warp)
    return warps


def in_blocks(plane: NDArray[Any]) -> NDArray[Any]:
    summed: NDArray[Any] = plane.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).sum((1, 3))
    return summed


def test_sums_are_numpys() -> None:
    warps, rng = spoilt_warps(), np.random.default_rng(7)
    sky = rng.normal(size=(3, SIDE, SIDE)).astype(np.float32)
    artefacts = rng.random((3, SIDE // 2, SIDE // 2)) < 0.2
    sums = Sums((SIDE, SIDE))
    used = [sums.add(*each) for each in zip(warps, sky, artefacts, strict=True)]
    pixels, depth = sums.result()

    image, variance, mask = (np.stack([getattr(w.pixels, n) for w in warps]) for n in ("image", "variance", "mask"))
    weight = np.stack([ramp(w).repeat(2, 0).repeat(2, 1) / w.sky_variance for w in warps])
    finite = np.isfinite(image) & np.isfinite(variance)
    spoilt = finite & (mask & SPOILT != 0)
    good = finite & ~spoilt & ~artefacts.repeat(2, 1).repeat(2, 2)
    kept = np.where(good.any(0), good, spoilt)
    total = (kept * weight).sum(0)
    with np.errstate(invalid="ignore"):
        mean = np.where(kept, weight * (image - sky), 0.0).sum(0) / total
        noise = np.where(kept, weight**2 * variance, 0.0).sum(0) / total**2
    np.testing.assert_allclose(pixels.image, mean, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(pixels.variance[total > 0], noise[total > 0], rtol=1e-4)
    np.testing.assert_array_equal(depth, good.sum(0))
    bits_of = np.bitwise_or.reduce(good[:, ::2, ::2] << np.arange(3)[:, None, None])
    np.testing.assert_array_equal(sums.taken[0], bits_of)
    for k in range(3):
        weighed, count = (in_blocks(plane) for plane in ((good * weight.astype(float))[k], good[k]))
        np.testing.assert_allclose(used[k], weighed / np.maximum(count, BLOCK * BLOCK // 2))

    clear, full = (good * weight).sum(0), (finite & (mask & np.uint16(Mask.SAT) != 0)) * weight
    bits = np.where(total > 0, 0, int(Mask.NO_DATA))
    bits |= np.where((total > 0) & ~good.any(0), int(Mask.BAD), 0)
    bits |= np.where(full.any(0) & (full.sum(0) >= 0.1 * (clear + full.sum(0))), int(Mask.SAT), 0)
    bits |= np.where(((good & (mask & np.uint16(Mask.HALO) != 0)) * weight).sum(0) > 0.5 * clear, int(Mask.HALO), 0)
    assert (pixels.mask != bits).mean() < 1e-5  # a weight that is just a half or a tenth


def cut(warp: Warp, y0: int, x0: int, y1: int, x1: int) -> Warp:
    planes = (plane[y0:y1, x0:x1] for plane in vars(warp.pixels).values())
    return replace(warp, x0=x0, y0=y0, pixels=MaskedImage(*planes))


def test_a_visits_weight_falls_to_its_own_edges_and_not_to_the_patchs() -> None:
    whole = a_warp(1, Stars())
    np.testing.assert_array_equal(ramp(whole), 1.0)
    weight = ramp(cut(whole, 100, 0, SIDE, 400))
    y, x = np.mgrid[: SIDE // 2, : SIDE // 2]
    distance = np.clip(np.minimum(y - 49, 200 - x), 0, MARGIN // 2)
    expected = np.maximum(np.sin(distance * np.pi / MARGIN) ** 2, 1e-3)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert weight[-1, 0] == 1.0


def test_a_hole_in_a_visit_is_an_edge() -> None:
    holed = a_warp(1, Stars())
    holed.pixels.image[200:300, 200:300] = np.nan
    weight = ramp(holed)
    assert weight[120, 120] == np.float32(1e-3)
    assert 0.4 < weight[120, 100 - MARGIN // 4] < 0.6
    assert weight[100 - MARGIN // 4, 100 - MARGIN // 4] > 0.95  # about a corner the weight is back sooner


def test_the_seventeenth_visit_has_a_plane_of_its_own() -> None:
    sums, nothing = Sums((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for k in range(17):
        warp = a_warp(k, Stars())
        warp.pixels.image[: 100 * (k % 2)] = np.nan
        sums.add(warp, nothing.astype(np.float32), nothing[::2, ::2] > 0.0)
    assert sums.taken.shape == (2, SIDE // 2, SIDE // 2)
    each = np.arange(1.0, 18.0, dtype=np.float32)
    inputs = Inputs(tuple(range(17)), np.broadcast_to(each[:, None, None], (17, 17, 17)), sums.taken)
    weight = inputs.at(np.array([3, 3]), np.array([50, 150]))
    np.testing.assert_array_equal(weight[:, 1], each)
    np.testing.assert_array_equal(weight[:, 0], np.where(np.arange(17) % 2, 0.0, each))
