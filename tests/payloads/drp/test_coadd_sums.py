"""The sums' kernels, held to plain NumPy."""

import numpy as np

from payloads.drp.coadd_sums import Sums
from payloads.drp.warps import SPOILT, Warp
from schemas.image import Mask
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


def test_sums_are_numpys() -> None:
    warps, rng = spoilt_warps(), np.random.default_rng(7)
    sky = rng.normal(size=(3, SIDE, SIDE)).astype(np.float32)
    artefacts = rng.random((3, SIDE // 2, SIDE // 2)) < 0.2
    sums = Sums((SIDE, SIDE))
    used = [sums.add(*each) for each in zip(warps, sky, artefacts, strict=True)]
    pixels, depth = sums.result()

    image, variance, mask = (np.stack([getattr(w.pixels, n) for w in warps]) for n in ("image", "variance", "mask"))
    weight = np.array([1.0 / w.sky_variance for w in warps])[:, None, None]
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
    for k in range(3):
        np.testing.assert_allclose(used[k] * 272**2, good[k].reshape(2, 272, 2, 272).sum((1, 3)))

    clear, full = (good * weight).sum(0), (finite & (mask & np.uint16(Mask.SAT) != 0)) * weight
    bits = np.where(total > 0, 0, int(Mask.NO_DATA))
    bits |= np.where((total > 0) & ~good.any(0), int(Mask.BAD), 0)
    bits |= np.where(full.any(0) & (full.sum(0) >= 0.1 * (clear + full.sum(0))), int(Mask.SAT), 0)
    bits |= np.where(((good & (mask & np.uint16(Mask.HALO) != 0)) * weight).sum(0) > 0.5 * clear, int(Mask.HALO), 0)
    assert (pixels.mask != bits).mean() < 1e-5  # a weight that is just a half or a tenth
