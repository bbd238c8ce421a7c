"""Relative calibration: what makes images of a tract in a band agree with one another and with a reference catalogue.

Of each visit-detector a scale of its fluxes, a slope of it over the image, and a WCS, from the stars of all at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from payloads.drp.agreement import Agreement, Judged, Known, agreement
from payloads.drp.distortion import maps_of
from payloads.drp.joint_astrometry import FEWEST as FEWEST_PLACES
from payloads.drp.joint_astrometry import Astrometry, fit_astrometry, terms
from payloads.drp.joint_photometry import FEWEST as FEWEST_FLUXES
from payloads.drp.joint_photometry import Photometry, bright_enough, fit_photometry, slopes
from payloads.drp.single_frame import SINGLE_VISIT_STAR_DTYPE, FrameSummary
from payloads.drp.star_links import Stars, link, offsets, on_frame, sightings
from payloads.drp.tan_sip import grid, tan_sip
from payloads.imaging.calibrate import at_epoch
from payloads.imaging.sphere import unit_vectors
from schemas.errors import BadData
from schemas.image import MaskedImage, VisitImage
from schemas.instrument import BANDS
from schemas.tables import REFCAT_DTYPE, Table
from schemas.wcs import Wcs, from_tangent, to_tangent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_WIDEST_DEG = 5.0
"""From the middle of a tract's frames to any of them, at the most."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A visit-detector's part in it. `stars`: rows of `SINGLE_VISIT_STAR_DTYPE`."""

    summary: FrameSummary
    stars: Table


@dataclass(frozen=True)
class Excluded:
    """A visit-detector that does not lie where its WCS says."""

    visit: int
    detector: int
    why: str


@dataclass(frozen=True, eq=False)
class RelativeCalibration:
    """One tract, one band; `visit`, `detector` (n,) in the order of the frames given, those excluded left out.

    `scale`: what preliminary fluxes are multiplied by at an image's centre, `scale_err` its error; elsewhere by
    scale * exp(slope . (u, v)), u and v from the centre, 1 at the longer side's edge: `slope` (n, 2). `crval` (n, 2)
    deg, `crpix` (n, 2), `cd` (n, 2, 2) deg/pixel, `sip` (n, 2, 4, 4): of `schemas.wcs.Wcs`. `shape` (n, 2): ny, nx.
    `kept`: those of too few stars, left with their preliminary calibration: scale 1, its error NaN. `order`: of
    the polynomial that a frame's stars bear, 0 for none; `n_places`, `n_fluxes`: its stars used. `place_floor_mas`,
    `flux_floor`, `reference_mas`: errors found beyond what photons explain, of bright stars' positions (an axis), their
    fluxes (a part), and the reference catalogue's positions (an axis).
    """

    band: str
    visit: Ints
    detector: Ints
    shape: Ints
    scale: Floats
    scale_err: Floats
    slope: Floats
    crval: Floats
    crpix: Floats
    cd: Floats
    sip: Floats
    kept: Bools
    order: Ints
    n_places: Ints
    n_fluxes: Ints
    excluded: tuple[Excluded, ...]
    place_floor_mas: float
    flux_floor: float
    reference_mas: float
    before: Agreement
    after: Agreement

    def wcs_of(self, visit: int, detector: int) -> Wcs:
        """The WCS of a visit-detector. Raises BadData, naming it, if it is none of these."""
        row = self.row_of(visit, detector)
        crval, crpix = ((float(a), float(b)) for a, b in (self.crval[row], self.crpix[row]))
        return Wcs(crval, crpix, self.cd[row], self.sip[row])

    def row_of(self, visit: int, detector: int) -> int:
        """Where a visit-detector is in the arrays. Raises BadData, naming it, if it is none of these."""
        rows = np.flatnonzero((self.visit == visit) & (self.detector == detector))
        if len(rows) == 0:
            why = [e.why for e in self.excluded if (e.visit, e.detector) == (visit, detector)] or [
                "not among the frames"
            ]
            raise BadData(f"no relative calibration in {self.band} of visit {visit} detector {detector}: {why[0]}")
        return int(rows[0])


def relative_calibration(frames: Sequence[Frame], refcat: Table) -> RelativeCalibration:
    """The joint calibration of frames of one tract and one band. `refcat`: rows of `REFCAT_DTYPE`.

    Frames of fewer than 10 common or known stars, 5 of them of S/N over 30, are kept as they are, and so are those
    whose stars are outliers for the most part; a frame that the catalogue shows to lie elsewhere is excluded. Raises
    BadData for frames of several bands, a visit-detector given twice, one without finite WCS or far from the others,
    tables of another kind, and where all are excluded.
    """
    _check(frames, refcat)
    pairs = [(frame.summary, frame.stars) for frame in frames]
    center = _center(frames)
    seen = sightings(pairs, center)
    catalogue, references = _references(refcat, frames, center)
    shift, elsewhere = offsets(seen, len(frames), references)
    if elsewhere.all():
        raise BadData(f"none of {len(frames)} frames lies where its WCS says: {_name(frames[0])} and all others")
    seen = seen.of(~elsewhere[seen.frame])
    stars = link(replace(seen, plane=seen.plane + shift[seen.frame]), references)
    free = _free(stars, len(frames))
    band = frames[0].summary.band
    places = fit_astrometry(stars, references, maps_of([frame.summary for frame in frames], center), free)
    fluxes = fit_photometry(stars, catalogue, band, free)
    free &= _agreeing(stars, places, fluxes)
    fits = _Fits(stars, shift * free[:, None], elsewhere, free, places, fluxes, references, catalogue, band)
    return _made(frames, center, fits)


def apply(calibration: RelativeCalibration, image: VisitImage, visit: int, detector: int) -> VisitImage:
    """The image with its fluxes and its WCS as the relative calibration has them; its background has no slope.

    Raises BadData for a visit-detector that the calibration has not, an image of another band or shape.
    """
    row = calibration.row_of(visit, detector)
    if image.band != calibration.band or image.pixels.shape != tuple(calibration.shape[row]):
        raise BadData(
            f"visit {visit} detector {detector}: an image in {image.band} of {image.pixels.shape}, "
            f"its calibration in {calibration.band} of {tuple(map(int, calibration.shape[row]))}"
        )
    factor = _surface(calibration, row)
    pixels = MaskedImage(image.pixels.image * factor, image.pixels.mask, image.pixels.variance * (factor * factor))
    scale = float(calibration.scale[row])
    return replace(
        image,
        pixels=pixels,
        wcs=calibration.wcs_of(visit, detector),
        zero_point=image.zero_point * scale,
        background=image.background * np.float32(scale),
    )


def _surface(calibration: RelativeCalibration, row: int) -> NDArray[np.float32]:
    """(ny, nx): by what each pixel is multiplied."""
    ny, nx = calibration.shape[row]
    half = max(ny, nx) / 2.0
    u, v = ((np.arange(n) - (n - 1) / 2.0) / half for n in (nx, ny))
    along_x, along_y = (np.exp(s * c) for s, c in zip(calibration.slope[row], (u, v), strict=True))
    result: NDArray[np.float32] = np.outer(calibration.scale[row] * along_y, along_x).astype(np.float32)
    return result


@dataclass(frozen=True, eq=False)
class _Fits:
    """What was fitted to what. `shift`: (n_frames, 2) arcsec that was added to the frames' places beforehand."""

    stars: Stars
    shift: Floats
    elsewhere: Bools
    free: Bools
    places: Astrometry
    fluxes: Photometry
    references: Floats
    catalogue: Table
    band: str


def _name(frame: Frame) -> str:
    return f"visit {frame.summary.visit} detector {frame.summary.detector}"


def _check(frames: Sequence[Frame], refcat: Table) -> None:
    if not frames:
        raise BadData("no frame to calibrate")
    if refcat.dtype != REFCAT_DTYPE:
        raise BadData(f"reference catalogue has columns {refcat.dtype.names}, expected {REFCAT_DTYPE.names}")
    first, seen = frames[0], set[tuple[int, int]]()
    if first.summary.band not in BANDS:
        raise BadData(f"{_name(first)}: no band {first.summary.band!r} in the reference catalogue")
    for frame in frames:
        told = frame.summary
        if told.band != first.summary.band:
            raise BadData(f"{_name(frame)} is in {told.band}, {_name(first)} in {first.summary.band}")
        if (told.visit, told.detector) in seen:
            raise BadData(f"{_name(frame)} is there twice")
        if frame.stars.dtype != SINGLE_VISIT_STAR_DTYPE:
            raise BadData(f"{_name(frame)}: stars have columns {frame.stars.dtype.names}")
        numbers = (*told.wcs.crval, *told.wcs.crpix, *told.wcs.cd.ravel(), *told.wcs.sip.ravel(), told.midpoint)
        if not np.isfinite(numbers).all():
            raise BadData(f"{_name(frame)} has no finite WCS or midpoint")
        seen.add((told.visit, told.detector))


def _center(frames: Sequence[Frame]) -> tuple[float, float]:
    """RA, dec (deg) in the middle of the frames. Raises BadData, naming the frame, for one that is far from it."""
    at = [frame.summary.wcs.pixel_to_sky(frame.summary.nx / 2.0, frame.summary.ny / 2.0) for frame in frames]
    vectors = np.array([unit_vectors(ra, dec) for ra, dec in at])
    x, y, z = np.median(vectors, axis=0)
    center = float(np.degrees(np.arctan2(y, x)) % 360.0), float(np.degrees(np.arctan2(z, np.hypot(x, y))))
    near = vectors @ unit_vectors(*center) > np.cos(np.radians(_WIDEST_DEG))
    if not near.all():
        frame = frames[int(np.argmin(near))]
        raise BadData(
            f"{_name(frame)} is more than {_WIDEST_DEG:.0f} deg from the middle of the frames: not of one tract"
        )
    return center


def _references(refcat: Table, frames: Sequence[Frame], center: tuple[float, float]) -> tuple[Table, Floats]:
    """The catalogue's stars near the frames, and their places (arcsec) on the plane at the frames' mean time."""
    ra, dec = at_epoch(refcat, float(np.mean([frame.summary.midpoint for frame in frames])))
    plane = 3600.0 * np.stack(to_tangent(ra, dec, center), axis=-1)
    near = np.hypot(*plane.T) < 3600.0 * (_WIDEST_DEG + 1.0)
    return refcat[near], plane[near]


def _free(stars: Stars, n_frames: int) -> Bools:
    """Frames of which there are stars enough to calibrate them."""
    frame = stars.sightings.frame
    places, fluxes = np.bincount(frame, minlength=n_frames), np.bincount(frame, bright_enough(stars), n_frames)
    result: Bools = (places >= FEWEST_PLACES) & (fluxes >= FEWEST_FLUXES)
    return result


def _agreeing(stars: Stars, places: Astrometry, fluxes: Photometry) -> Bools:
    """Frames of which not too much is outliers."""
    linked = np.bincount(stars.sightings.frame, minlength=len(places.n_stars))
    enough = places.n_stars >= np.maximum(FEWEST_PLACES, linked / 2.0)
    result: Bools = enough & (fluxes.n_stars >= FEWEST_FLUXES)
    return result


def _made(frames: Sequence[Frame], center: tuple[float, float], fits: _Fits) -> RelativeCalibration:
    rows = np.flatnonzero(~fits.elsewhere)
    summaries = [frames[int(row)].summary for row in rows]
    maps = [_wcs(frames[row].summary, center, fits, row) for row in map(int, rows)]
    free, level = fits.free[rows], fits.fluxes.coefficients[rows]
    scale = np.where(free, np.exp(level[:, 0]), 1.0)
    return RelativeCalibration(
        band=fits.band,
        visit=np.array([s.visit for s in summaries]),
        detector=np.array([s.detector for s in summaries]),
        shape=np.array([(s.ny, s.nx) for s in summaries]),
        scale=scale,
        scale_err=np.where(free, scale * fits.fluxes.error[rows], np.nan),
        slope=np.where(free[:, None], level[:, 1:], 0.0),
        crval=np.array([wcs.crval for wcs in maps]),
        crpix=np.array([wcs.crpix for wcs in maps]),
        cd=np.array([wcs.cd for wcs in maps]),
        sip=np.array([wcs.sip for wcs in maps]),
        kept=~free,
        order=np.where(free, fits.places.order[rows], 0),
        n_places=fits.places.n_stars[rows],
        n_fluxes=fits.fluxes.n_stars[rows],
        excluded=tuple(_excluded(frame) for frame, is_so in zip(frames, fits.elsewhere, strict=True) if is_so),
        place_floor_mas=fits.places.floor_mas,
        flux_floor=fits.fluxes.floor,
        reference_mas=fits.places.reference_mas,
        before=_agreement(fits, after=False),
        after=_agreement(fits, after=True),
    )


def _excluded(frame: Frame) -> Excluded:
    why = "its stars are not where its WCS has the reference catalogue's"
    return Excluded(frame.summary.visit, frame.summary.detector, why)


def _wcs(summary: FrameSummary, center: tuple[float, float], fits: _Fits, row: int) -> Wcs:
    """The preliminary map with what the fit adds to it, as TAN-SIP."""
    if not fits.free[row]:
        return summary.wcs
    x, y = grid((summary.ny, summary.nx))
    plane = 3600.0 * np.stack(to_tangent(*summary.wcs.pixel_to_sky(x, y), center), axis=-1)
    plane += fits.shift[row] + terms(on_frame(summary, x, y)) @ fits.places.coefficients[row] / 1000.0
    ra, dec = from_tangent(plane[:, 0] / 3600.0, plane[:, 1] / 3600.0, center)
    return tan_sip(x, y, ra, dec, (summary.ny, summary.nx))


def _agreement(fits: _Fits, *, after: bool) -> Agreement:
    """How well all agree, with the preliminary calibrations or with the new ones."""
    stars, seen = fits.stars, fits.stars.sightings
    plane, logs = seen.plane - fits.shift[seen.frame], np.log(seen.flux)
    if after:
        moved = np.einsum("np,npq->nq", terms(seen.uv), fits.places.coefficients[seen.frame])
        plane = seen.plane + moved / 1000.0
        logs = logs + np.sum(slopes(seen.uv) * fits.fluxes.coefficients[seen.frame], axis=1)
    known = Known(fits.references, fits.catalogue[f"{fits.band}_flux"].astype(np.float64))
    free = fits.free[seen.frame]
    judged = Judged(fits.places.used & free, fits.places.anchored, fits.fluxes.used & free, fits.fluxes.anchored)
    return agreement(stars, plane, logs, known, judged)
