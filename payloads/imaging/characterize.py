"""What an image says of itself: its sky, its PSF, its bright stars, and how far their halos and spikes reach."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from payloads.imaging import background, mask_ops, psf, spikes, stars
from payloads.imaging.psf import Field, Neighbours
from payloads.imaging.stars import StarFlag
from schemas.errors import BadData
from schemas.image import Image, Mask, MaskedImage, MaskPlane, Psf
from schemas.tables import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_SPOILT = int(Mask.BAD | Mask.SAT | Mask.INTRP | Mask.CR | Mask.NO_DATA | Mask.UNMASKED_NAN | Mask.EDGE)
_CELL = 256
_FOUND_FROM = 5.0
"""Standard deviations of a peak's own pixel; about S/N 18 in an LSST PSF."""

_MEASURED = 4000
"""Stars fitted, the brightest ones; more would not better the astrometry."""

_PSF_FROM = (25.0, 8.0)
"""Peaks, in the sky's noise, that the PSF is made of (S/N 90, 30): the second where the first gives too
few."""

_PSF_HALVES, _LARGEST_HALF = ((4.3, 12), (6.4, 15), (8.0, 19)), 24
"""Half-width of the PSF's stamp below a FWHM (pixels), and beyond: few, for kernels are compiled for each; none much
larger than the matching kernel, which leaves the light beyond itself."""
_PSF_STARS_PER_CELL = 12
_PSF_GRID = 5
_ENOUGH_PSF_STARS = 40
_FAINTEST_WING = 0.1
"""Light, in the sky's noise, to which a source is kept out of sky and of other stars' stamps."""

_HALO_LEVEL = 1.5
"""A halo is masked out to where it has this much of the sky's noise per pixel. What subtraction leaves of it
beyond the kernel is about a tenth; a matched filter gathers some sixty pixels of it, so that fainter halos
stay below 1.5 sigma."""

_LONGEST_HALO, _LONGEST_SPIKE = 400.0, 800.0


@dataclass(frozen=True, eq=False)
class Characterized:
    """An image and what was found out about it.

    `pixels`: electrons, sky subtracted, with HALO in its mask. `background`: electrons, a mesh of cells that
    `payloads.imaging.background.render` turns into a surface. `fwhm_px` at the centre. `stars`: rows of
    `payloads.imaging.stars.STAR_DTYPE`, fluxes in electrons within the PSF's kernel.
    """

    pixels: MaskedImage
    background: Image
    psf: Psf
    fwhm_px: float
    stars: Table


@dataclass(frozen=True, eq=False)
class _Sources:
    """Peaks of an image: `noise` of the sky at each, `wing` the radius (pixels) of its light."""

    table: Table
    noise: Floats
    wing: Floats


def characterize(image: MaskedImage) -> Characterized:
    """Subtract the sky, make the PSF from isolated stars, measure the bright stars, mask halos and spikes.

    `image`: electrons with their sky, (ny, nx). Raises BadData where there is no sky to see or fewer than 5
    stars that can make a PSF, with their number.
    """
    first, noise = background.mesh(image.image, image.mask, _SPOILT, _CELL)
    pixels = background.subtract(image.image, first)
    sources = _sources(pixels, image, noise)
    saturated = mask_ops.footprints(image.mask, Mask.SAT)
    second, noise = background.mesh(pixels, _covered(image.mask, sources, saturated), _SPOILT | _COVERED, _CELL)
    pixels = np.subtract(pixels, background.render(second, pixels.shape), out=pixels)
    field = Field(pixels, image.mask, _SPOILT)
    model = _psf_of(field, sources)
    width = psf.fwhm(model.at(pixels.shape[1] / 2.0, pixels.shape[0] / 2.0))
    _measure(field, model, width, sources)
    seen = MaskedImage(pixels, image.mask, image.variance)
    seen = replace(seen, mask=_with_halos(seen, model, width, sources, saturated))
    return Characterized(seen, first + second, model, width, sources.table[:_MEASURED])


_COVERED = int(Mask.DETECTED)


def _sources(pixels: Image, image: MaskedImage, noise: Image) -> _Sources:
    """Peaks with their widths, brightest first."""
    table = stars.find(pixels, image.variance, _FOUND_FROM)
    if len(table) == 0:
        raise BadData("no star: no pixel stands 5 sigma over the sky")
    stars.size_up(pixels, image.mask, _SPOILT, table)
    at_peaks = background.at(noise, pixels.shape, table["x"], table["y"])
    width = _typical_width(table)
    return _Sources(table, at_peaks, _wing(table["peak"], at_peaks, width))


def _typical_width(table: Table) -> float:
    sized = table["fwhm"][(table["flags"] == 0)][:500]
    if sized.size == 0:
        raise BadData(f"no usable star: all {len(table)} peaks are masked or have no centre")
    return _mode(sized)


def _mode(values: Floats) -> float:
    """The half-sample mode: the densest half of the densest half, and so on (Robertson & Cryer 1974)."""
    ordered = np.sort(values.astype(np.float64))
    while ordered.size > 3:
        half = (ordered.size + 1) // 2
        spans = ordered[half - 1 :] - ordered[: ordered.size - half + 1]
        first = int(np.argmin(spans))
        ordered = ordered[first : first + half]
    return float(np.median(ordered))


def _wing(peak: Floats, noise: Floats, width: float) -> Floats:
    """Radius at which a Moffat profile of index 3 falls to `_FAINTEST_WING` of the noise."""
    core = width / 2.0 / np.sqrt(2.0 ** (1.0 / 3.0) - 1.0)
    ratio = np.maximum(peak / (_FAINTEST_WING * noise), 1.0)
    result: Floats = core * np.sqrt(np.cbrt(ratio) - 1.0)
    return result


def _covered(mask: MaskPlane, sources: _Sources, saturated: mask_ops.Footprints) -> MaskPlane:
    """A copy of the mask with a bit where there is light of a source, for the sky's second look."""
    covered = mask.copy()
    mask_ops.paint_discs(covered, _COVERED, sources.table["x"], sources.table["y"], sources.wing)
    # The charge of a saturated star goes with its area; its wing is at least some of its radii.
    radius = 10.0 * np.sqrt(saturated.area / np.pi)
    mask_ops.paint_discs(covered, _COVERED, saturated.x, saturated.y, np.minimum(radius, _LONGEST_HALO / 2.0))
    return covered


def _psf_of(field: Field, sources: _Sources) -> Psf:
    """The PSF; the sources' flags say which it was made of, which are too wide, which crowded."""
    table = sources.table
    width = _typical_width(table)
    half = next((half for widest, half in _PSF_HALVES if width < widest), _LARGEST_HALF)
    near, crowded = _neighbours(sources, half + 4, 1.5 * width)
    table["flags"][crowded] |= np.uint16(StarFlag.CROWDED)
    table["flags"][~_on_locus(table, sources.noise, field.image.shape)] |= np.uint16(StarFlag.NOT_STELLAR)
    chosen = _choose(sources, field.image.shape)
    model, used = psf.fit(
        field,
        table["x"][chosen],
        table["y"][chosen],
        sources.noise[chosen] ** 2,
        _those(near, chosen),
        width,
        half,
    )
    table["flags"][chosen[used]] |= np.uint16(StarFlag.PSF_USED)
    return model


def _neighbours(sources: _Sources, within: float, core: float) -> tuple[Neighbours, Bools]:
    """The discs of every source's neighbours, and which sources have one within `core` pixels."""
    table = sources.table
    positions = np.column_stack([table["x"], table["y"]])
    pairs = cKDTree(positions).query_pairs(within, output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    owner, other = pairs.T
    radius = np.minimum(sources.wing[other], within)
    distance = np.hypot(*(positions[owner] - positions[other]).T)
    crowded = np.zeros(len(table), bool)
    crowded[owner[distance - radius < core]] = True
    start = np.searchsorted(owner, np.arange(len(table) + 1))
    return Neighbours(start, table["x"][other], table["y"][other], radius), crowded


def _those(near: Neighbours, chosen: Ints) -> Neighbours:
    """The neighbours of the chosen sources alone."""
    counts = near.start[chosen + 1] - near.start[chosen]
    rows = np.concatenate([np.arange(near.start[k], near.start[k + 1]) for k in chosen] or [np.empty(0, np.int64)])
    start = np.concatenate([[0], np.cumsum(counts)])
    return Neighbours(start, near.x[rows], near.y[rows], near.radius[rows])


def _on_locus(table: Table, noise: Floats, shape: tuple[int, ...]) -> Bools:
    """Sources as wide as stars are there: a quadratic surface through the widths of bright ones, clipped."""
    u, v = 2.0 * table["x"] / shape[1] - 1.0, 2.0 * table["y"] / shape[0] - 1.0
    design = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
    width, typical = table["fwhm"].astype(np.float64), _typical_width(table)
    bright = (table["flags"] == 0) & (table["peak"] > _PSF_FROM[1] * noise)
    kept, expected = bright & (np.abs(width / typical - 1.0) < 0.2), np.full(len(table), typical)
    for _ in range(3):
        if not kept.any():
            break
        terms = 6 if kept.sum() >= 60 else 3 if kept.sum() >= 15 else 1
        expected = design[:, :terms] @ np.linalg.lstsq(design[kept, :terms], width[kept], rcond=None)[0]
        scatter = 1.4826 * np.median(np.abs(width - expected)[kept])
        kept = bright & (np.abs(width - expected) < max(3.5 * scatter, 0.02 * typical))
    # A width's error falls with S/N, here about four times the peak over the noise.
    allowed = np.maximum(0.08, 0.8 * noise / table["peak"])
    result: Bools = np.abs(width / expected - 1.0) < allowed
    return result


def _choose(sources: _Sources, shape: tuple[int, ...]) -> Ints:
    """The brightest good stars of each cell of a grid, so that all of the image has a say in the PSF."""
    table = sources.table
    good = table["flags"] == 0
    bright = table["peak"] / sources.noise
    usable = good & (bright > _PSF_FROM[0])
    if usable.sum() < _ENOUGH_PSF_STARS:
        usable = good & (bright > _PSF_FROM[1])
    chosen = np.flatnonzero(usable)
    if len(chosen) < 5:
        raise BadData(f"{len(chosen)} usable stars among {len(table)} peaks, at least 5 are needed for the PSF")
    cell = [np.clip(table[c][chosen] * _PSF_GRID // n, 0, _PSF_GRID - 1) for c, n in (("x", shape[1]), ("y", shape[0]))]
    key = (cell[0] * _PSF_GRID + cell[1]).astype(np.int64)
    by_cell = np.argsort(key, kind="stable")
    rank = np.empty(len(chosen), np.int64)
    rank[by_cell] = np.arange(len(chosen)) - np.searchsorted(key[by_cell], key[by_cell])
    result: Ints = chosen[rank < _PSF_STARS_PER_CELL]
    return result


def _measure(field: Field, model: Psf, width: float, sources: _Sources) -> None:
    """Fit the brightest sources with the PSF, in place."""
    table, noise = sources.table[:_MEASURED], sources.noise[:_MEASURED]
    fits = psf.measure(field, model, table["x"], table["y"], noise**2, int(np.ceil(2.0 * width)))
    fitted = np.isfinite(fits.flux)
    table["flags"][~fitted] |= np.uint16(StarFlag.UNMEASURED)
    for name in ("flux", "flux_err", "position_err", "chi2"):
        table[name] = getattr(fits, name)
    table["x"][fitted], table["y"][fitted] = fits.x[fitted], fits.y[fitted]
    # A wrong model of a per cent is chi2 1 + (S/N / 100)**2 / pixels; anything far beyond is no single star.
    snr = np.where(fitted, fits.flux / fits.flux_err, 0.0)
    table["flags"][fits.chi2 > 1.5 + (0.003 * snr) ** 2] |= np.uint16(StarFlag.NOT_STELLAR)


def _with_halos(
    pixels: MaskedImage, model: Psf, width: float, sources: _Sources, saturated: mask_ops.Footprints
) -> MaskPlane:
    """A copy of the mask with HALO round the stars whose light reaches beyond the PSF's kernel, and on their spikes."""
    stellar = sources.table["flags"] & (StarFlag.NOT_STELLAR | StarFlag.MASKED) == 0
    bright = np.flatnonzero(stellar & (sources.table["peak"] > 100.0 * sources.noise))
    x = np.concatenate([saturated.x, sources.table["x"][bright]])
    y = np.concatenate([saturated.y, sources.table["y"][bright]])
    noise = np.concatenate([np.full(len(saturated.x), np.median(sources.noise)), sources.noise[bright]])
    radius = stars.reach(pixels.image, x, y, _HALO_LEVEL * noise, _LONGEST_HALO)
    far = radius > model.components.shape[1] // 2
    result = pixels.mask.copy()
    mask_ops.paint_discs(result, Mask.HALO, x[far], y[far], radius[far])
    far[: len(saturated.x)] = True
    rays = spikes.find_spikes(pixels, _SPOILT, x[far], y[far], radius[far], width, _LONGEST_SPIKE)
    spikes.paint_rays(result, Mask.HALO, rays)
    return result
