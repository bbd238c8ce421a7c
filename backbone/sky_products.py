"""What a detector needs of the sky, put together from what is kept by tract: template and reference stars."""

from collections.abc import Iterator, Sequence

import numpy as np
from lsst.sphgeom import Circle
from numpy.typing import NDArray

from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from backbone.psf_model import psf_of_mosaic
from schemas.identity import DatasetId
from schemas.image import Mask, MaskedImage, Psf, Template
from schemas.skymap import Box, Tract, tract_at
from schemas.tables import Table
from schemas.wcs import Wcs, from_tangent, separation_arcsec

NO_DATA_VARIANCE = np.float32(1e18)
"""nJy**2 where there is no template: no weight at all, and its square is still a float32."""

_ALIKE = 1.2
"""Ratio of the areas of PSFs, 1 / sum p**2, up to which they are one: 10 % in width."""
_PROBE_DEG = 0.2
"""How finely a circle is searched for tracts, which are 1.6 deg high and about as wide but at the poles."""


def template_for(archive: ButlerArchive, wcs: Wcs, shape: tuple[int, int], band: str) -> Template:
    """The template under a detector of `shape` (ny, nx); a guess of its WCS will do, to 32 pixels of margin.

    It is put together from patches of the tract in which the detector's centre lies, on that tract's pixels.
    Where there is none, or one of quite another PSF than most have, the image is 0, the mask NO_DATA and the variance
    `NO_DATA_VARIANCE`. Raises NotKept if there is no patch at all, BadData naming a patch that is damaged.
    """
    ny, nx = shape
    tract = tract_at(*(float(angle) for angle in wcs.pixel_to_sky((nx - 1) / 2.0, (ny - 1) / 2.0)))
    box = tract.box_of(wcs, shape)
    mosaic = _blank(box.shape)
    pieces: list[tuple[Box, Psf]] = []
    areas: list[int] = []
    for patch_id, part in _parts(tract, box, band):
        place = _relative(part, box.x0, box.y0)
        try:
            patch = archive.get(patch_id, _relative(part, *_corner(patch_id)))
        except NotKept:
            continue
        _paste(mosaic, patch.pixels, place)
        pieces.append((place, patch.psf))
        areas.append(patch.pixels.mask.size - int(np.count_nonzero(patch.pixels.mask & np.uint16(Mask.NO_DATA))))
    if not pieces:
        raise NotKept(f"no {band} template patch of tract {tract.id} in {box}")
    chosen = of_one_psf([psf for _, psf in pieces], areas)
    for (place, _), one in zip(pieces, chosen, strict=True):
        if not one:
            _paste(mosaic, _blank(place.shape), place)
    psf = psf_of_mosaic([piece for piece, one in zip(pieces, chosen, strict=True) if one], box.shape)
    return Template(mosaic, tract.wcs.shifted(box.x0, box.y0), psf, band)


def of_one_psf(psfs: Sequence[Psf], areas: Sequence[int]) -> NDArray[np.bool_]:
    """Which of a mosaic's pieces are taken: those of the PSF that has most of the area, for no kernel matches two.

    So it is where visits end of which templates were made, and others were there before. `areas`: pixels that there
    are; what has none is not taken beside what has.
    """
    spread = np.array([1.0 / (psf.at(psf.shape[1] / 2.0, psf.shape[0] / 2.0) ** 2).sum() for psf in psfs])
    alike = np.abs(np.log(spread[:, None] / spread)) < np.log(_ALIKE)
    seen = np.array(areas)
    result: NDArray[np.bool_] = alike[int(np.argmax(alike @ seen))] & ((seen > 0) | ~seen.any())
    return result


def refcat_for(archive: ButlerArchive, ra: float, dec: float, radius: float) -> Table:
    """Reference stars (`REFCAT_DTYPE`) within `radius` (deg) of a place (deg, ICRS), tract by tract.

    Raises NotKept if no tract there has a catalogue; a tract without one beside others gives no stars.
    """
    found = [star for tract in _tracts_within(ra, dec, radius) for star in _kept_stars(archive, tract)]
    if not found:
        raise NotKept(f"no reference catalogue within {radius} deg of ({ra:.4f}, {dec:.4f})")
    stars = np.concatenate(found)
    near: Table = stars[separation_arcsec(stars["ra"], stars["dec"], ra, dec) <= radius * 3600.0]
    return near


def _blank(shape: tuple[int, int]) -> MaskedImage:
    return MaskedImage(
        np.zeros(shape, np.float32),
        np.full(shape, Mask.NO_DATA, np.uint16),
        np.full(shape, NO_DATA_VARIANCE, np.float32),
    )


def _parts(tract: Tract, box: Box, band: str) -> Iterator[tuple[DatasetId, Box]]:
    """The patches under a box of tract pixels, and which of its pixels each has."""
    for patch in tract.patches_in(box):
        whole = tract.patch_box(patch)
        part = Box(max(box.x0, whole.x0), max(box.y0, whole.y0), min(box.x1, whole.x1), min(box.y1, whole.y1))
        yield DatasetId(dataset_type="template_patch", tract=tract.id, patch=patch, band=band), part


def _corner(patch_id: DatasetId) -> tuple[int, int]:
    if patch_id.patch is None:
        raise ValueError(f"{patch_id} names no patch")
    whole = Tract.patch_box(patch_id.patch)
    return whole.x0, whole.y0


def _relative(box: Box, x0: int, y0: int) -> Box:
    return Box(box.x0 - x0, box.y0 - y0, box.x1 - x0, box.y1 - y0)


def _paste(mosaic: MaskedImage, piece: MaskedImage, place: Box) -> None:
    where = slice(place.y0, place.y1), slice(place.x0, place.x1)
    mosaic.image[where] = piece.image
    mosaic.mask[where] = piece.mask
    mosaic.variance[where] = piece.variance


def tracts_touched(circle: Circle) -> list[int]:
    """Ids of the tracts whose inner areas a circle on the sphere touches."""
    x, y, z = (float(part) for part in circle.getCenter())
    ra, dec = np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(np.clip(z, -1.0, 1.0)))
    return _tracts_within(float(ra), float(dec), float(circle.getOpeningAngle().asDegrees()))


def _tracts_within(ra: float, dec: float, radius: float) -> list[int]:
    steps = np.linspace(-radius, radius, 2 * max(1, int(np.ceil(radius / _PROBE_DEG))) + 1)
    xi, eta = np.meshgrid(steps, steps)
    inside = np.hypot(xi, eta) <= radius * 1.0001
    probes = zip(*from_tangent(xi[inside], eta[inside], (ra, dec)), strict=True)
    return sorted({tract_at(float(a), float(d)).id for a, d in probes})


def _kept_stars(archive: ButlerArchive, tract: int) -> list[Table]:
    try:
        return [archive.get(_refcat_id(tract))]
    except NotKept:
        return []


def _refcat_id(tract: int) -> DatasetId:
    return DatasetId(dataset_type="reference_catalogue", tract=tract)
