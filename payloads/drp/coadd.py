"""Coadds: the weighted mean of visits' warps, without what is in few of them.

Each visit has one weight, the inverse of its sky's variance: weights that followed the light of sources would make the
PSF depend on their brightness (Rubin's DMTN-080; Mandelbaum et al. 2023, Open J. Astrophys. 6, 5). So the coadd's PSF
is the mean of the visits', with the same weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from payloads.drp.artefacts import find_artefacts, match_skies
from payloads.drp.coadd_psf import PsfSum, at_cells, fitted, psf_within
from payloads.drp.coadd_sky import on_empty_sky
from payloads.drp.coadd_sums import Sums
from payloads.drp.matching import BIN, binned, matched, targets
from payloads.drp.template_psf import FEWEST, brought, how_many
from payloads.drp.warps import MARGIN, Warp
from payloads.imaging import background
from payloads.imaging.stars import FWHM_OF_SIGMA
from schemas.errors import BadData
from schemas.image import INPUT_BLOCK, Image, Inputs, Mask, MaskedImage, Psf, Template
from schemas.wcs import Wcs

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Loader = Callable[[], Warp]

NO_DATA_VARIANCE = np.float32(1e18)
"""nJy**2 in a template where there is none: no weight at all, and its square is still a float32."""

_TEMPLATE_BITS = np.uint16(Mask.SAT | Mask.BAD | Mask.NO_DATA)


@dataclass(frozen=True, eq=False)
class Coadd:
    """A patch in one band, with a margin of `payloads.drp.warps.MARGIN` pixels: nJy, `wcs` the tract's.

    `pixels`: NaN with infinite variance and NO_DATA where no visit has a pixel; SAT where saturated visits would have a
    tenth of the weight or more; BAD where no visit has a good pixel, and SAT if it is that; HALO where most have it.
    The variance is a PSF-sized sum's, of sky and sources. `depth`: (ny, nx), how many visits each pixel is the mean of.
    `inputs`: the visits in their order, and with each one's FWHM (`fwhm_px`) and the part of its pixels that was left
    out as an artefact.
    """

    pixels: MaskedImage
    wcs: Wcs
    psf: Psf
    band: str
    depth: NDArray[np.uint16]
    inputs: Inputs
    fwhm_px: Floats
    artefacts: Floats


@dataclass(frozen=True, eq=False)
class _Compared:
    """What the comparison of visits gave: the sky to take from each, a mesh; artefacts, binned (n, ny / 2, nx / 2)."""

    wcs: Wcs
    band: str
    shape: tuple[int, int]
    skies: list[Image]
    artefacts: Bools


def make_coadd(warps: Sequence[Loader], target: Image | None = None) -> Coadd:
    """The coadd of a patch's warps, each loaded twice and let go: half-size planes of all are kept, 10 MB each.

    `target`: (k, k), a PSF to bring it to (see `payloads.drp.template_psf`); else it has the visits', weighted as they
    are, which jumps a little where one of them ends.

    Skies are matched to their mean first, and what is left of them is taken from the coadd. Of three visits or more,
    what is in few is left out (see `payloads.drp.artefacts`); of two, what is brighter in one; of one, nothing but what
    is masked. Raises BadData if there is no warp or no good pixel, and if bands or grids differ, naming the visit.
    """
    if not warps:
        raise BadData("a coadd of no warps")
    compared = _compare(warps)
    sums, psfs, told = Sums(compared.shape), PsfSum(compared.shape), []
    for load, sky, clipped in zip(warps, compared.skies, compared.artefacts, strict=True):
        warp = load()
        weight = sums.add(warp, background.render(sky, compared.shape), clipped)
        psfs.add(warp.kernels, weight)
        told.append((warp.visit, weight, warp.fwhm, float(clipped.mean())))
    visits, weights, fwhm_px, artefacts = zip(*told, strict=True)
    if not any(weight.any() for weight in weights):
        raise BadData(f"a {compared.band} coadd of visits {list(visits)}: none has a good pixel")
    pixels, depth = sums.result()
    on_empty_sky(pixels)
    means = psfs.means()
    if target is None:
        psf = fitted(at_cells(means, compared.shape), compared.shape)
    else:
        pixels, psf = brought(pixels, means, target)
    return Coadd(
        pixels=pixels, wcs=compared.wcs, psf=psf, band=compared.band, depth=depth,
        inputs=Inputs(visits, np.array(weights, np.float32), sums.taken), fwhm_px=np.array(fwhm_px),
        artefacts=np.array(artefacts),
    )  # fmt: skip


def template_of(coadd: Coadd) -> Template:
    """The patch's own pixels, as prompt processing reads them: 0 with a variance of 1e18 where there are none.

    Of the mask, what a template tells: SAT, BAD, NO_DATA.
    """
    ny, nx = coadd.pixels.shape
    inner = slice(MARGIN, ny - MARGIN), slice(MARGIN, nx - MARGIN)
    mask = coadd.pixels.mask[inner] & _TEMPLATE_BITS
    none = (mask & np.uint16(Mask.NO_DATA)) != 0
    image = np.where(none, np.float32(0.0), coadd.pixels.image[inner])
    variance = np.where(none, NO_DATA_VARIANCE, coadd.pixels.variance[inner])
    wcs = coadd.wcs.shifted(MARGIN, MARGIN)
    blocks, pairs = (tuple(slice(part.start // n, part.stop // n) for part in inner) for n in (INPUT_BLOCK, 2))
    weight, taken = coadd.inputs.weight[:, *blocks], coadd.inputs.taken[:, *pairs]
    inputs = replace(coadd.inputs, weight=np.ascontiguousarray(weight), taken=np.ascontiguousarray(taken))
    return Template(MaskedImage(image, mask, variance), wcs, psf_within(coadd.psf, MARGIN), coadd.band, inputs)


def sharpest(warps: Sequence[Loader]) -> list[Loader]:
    """The visits that a template is made of, in their order: the sharpest third of them, eight at the least.

    Where those leave a cell with fewer than eight visits that more could see, the sharpest of the others that do are
    taken as well. Loads each warp once.
    """
    told = [(warp.fwhm, warp.covered) for warp in (load() for load in warps)]
    most = how_many(len(told))
    depth: NDArray[np.int64] = np.zeros(told[0][1].shape, np.int64) if told else np.zeros((0, 0), np.int64)
    chosen = []
    for rank, k in enumerate(sorted(range(len(told)), key=lambda k: told[k][0])):
        covered = told[k][1]
        if rank < most or (depth[covered] < FEWEST).any():
            chosen.append(k)
            depth += covered
    return [warps[k] for k in sorted(chosen)]


def _compare(warps: Sequence[Loader]) -> _Compared:
    first = warps[0]()
    wcs, band, shape = first.wcs, first.band, first.shape
    halves = [binned(first), *(binned(_fitting(load(), first)) for load in warps[1:])]
    del first
    aims = targets(halves)
    common = min(aim.fwhm for aim in aims)
    stack = np.empty((len(halves), shape[0] // BIN, shape[1] // BIN), np.float32)
    for k, aim in enumerate(aims):
        stack[k] = matched(halves.pop(0), aim)
    added = np.array([aim.fwhm**2 - common**2 for aim in aims])
    skies = match_skies(stack, added == 0.0)
    blur = np.sqrt(added) / FWHM_OF_SIGMA / BIN
    return _Compared(wcs, band, shape, skies, find_artefacts(stack, blur))


def _fitting(warp: Warp, first: Warp) -> Warp:
    """The warp, if it has the first one's band and grid."""
    same_grid = warp.shape == first.shape and (warp.wcs.crval, warp.wcs.crpix) == (first.wcs.crval, first.wcs.crpix)
    if warp.band != first.band or not same_grid:
        raise BadData(f"visit {warp.visit} is in {warp.band} on another grid or in another band than {first.visit}'s")
    return warp
