"""A visit-detector by itself: from raws to an image in nJy and the stars that tie it to others.

It is what alert production does before it subtracts: the same functions in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from payloads.imaging.calibrate import CalibrationSummary, calibrate
from payloads.imaging.characterize import Characterized, characterize
from payloads.imaging.isr import remove_signature
from payloads.imaging.snaps import EXPECTED_FWHM, combine_snaps, exposure_time, midpoint
from schemas.errors import BadData
from schemas.image import Calibration, MaskedImage, Observation, Psf, Raw, VisitImage
from schemas.instrument import Detector
from schemas.pointing import nominal_wcs
from schemas.tables import Table
from schemas.wcs import Wcs

SINGLE_VISIT_STAR_DTYPE = np.dtype(
    [
        ("visit", "i8"), ("detector", "i4"), ("x", "f8"), ("y", "f8"), ("position_err", "f4"), ("ra", "f8"),
        ("dec", "f8"), ("flux", "f4"), ("flux_err", "f4"), ("flags", "u2"),
    ]
)  # fmt: skip
"""A star of one visit-detector: pixels (0-based) and their error per axis, deg (ICRS), nJy in the PSF's stamp,
`payloads.imaging.stars.StarFlag`."""


@dataclass(frozen=True, eq=False)
class FrameSummary:
    """What a visit-detector is, beside its pixels; (ny, nx) its shape, `midpoint` TAI s, `exposure_time` s.

    `zero_point`: nJy per electron within the PSF's stamp; `sky_e`, `depth_mag` as `CalibrationSummary` has them; `psf`:
    the image's.
    """

    visit: int
    detector: int
    band: str
    physical_filter: str
    ny: int
    nx: int
    wcs: Wcs
    midpoint: float
    exposure_time: float
    zero_point: float
    fwhm_px: float
    sky_e: float
    depth_mag: float
    wcs_rms_mas: float
    n_stars: int
    psf: Psf


@dataclass(frozen=True, eq=False)
class SingleFrame:
    """`stars`: rows of `SINGLE_VISIT_STAR_DTYPE`."""

    image: VisitImage
    stars: Table
    summary: FrameSummary


def single_frame(raws: Sequence[Raw], calibration: Calibration, detector: Detector, refcat: Table) -> SingleFrame:
    """A visit-detector's image in nJy, by the reference stars on it. `raws`: its snaps, in any order.

    `refcat`: rows of `REFCAT_DTYPE`. Raises BadData for raws of several visits or detectors, and as
    `payloads.imaging` does for what cannot be reduced or calibrated.
    """
    seen = _observations(raws, detector)
    snaps = [remove_signature(raw, calibration, detector) for raw in sorted(raws, key=lambda raw: raw.observation.snap)]
    characterized = characterize(_combined(snaps))
    first = seen[0]
    guess = nominal_wcs(detector, first.ra, first.dec, first.rotation)
    image, told = calibrate(characterized, refcat, guess, first.band, midpoint(seen), exposure_time(seen))
    stars = _stars(characterized, image, first.visit, detector.id)
    return SingleFrame(image, stars, _summary(image, told, characterized, first, detector.id))


def _observations(raws: Sequence[Raw], detector: Detector) -> list[Observation]:
    """The snaps' observations, in order."""
    seen = sorted((raw.observation for raw in raws), key=lambda observation: observation.snap)
    if not seen:
        raise BadData(f"no raw of detector {detector.id}")
    if len({(o.instrument, o.visit) for o in seen}) > 1 or {raw.detector for raw in raws} != {detector.id}:
        raise BadData(f"raws of one visit and detector {detector.id}: {[o.image_name for o in seen]}")
    if [o.snap for o in seen] != list(range(seen[0].n_snaps)):
        raise BadData(f"visit {seen[0].visit} has {seen[0].n_snaps} snaps, not {[o.snap for o in seen]}")
    return seen


def _combined(snaps: list[MaskedImage]) -> MaskedImage:
    image = combine_snaps(snaps, EXPECTED_FWHM)
    snaps.clear()  # each as large as what is made of it
    return image


def _stars(image: Characterized, visit: VisitImage, number: int, detector: int) -> Table:
    stars = np.zeros(len(image.stars), SINGLE_VISIT_STAR_DTYPE)
    for name in ("x", "y", "position_err", "flags"):
        stars[name] = image.stars[name]
    for name in ("flux", "flux_err"):
        stars[name] = image.stars[name] * visit.zero_point
    stars["visit"], stars["detector"] = number, detector
    stars["ra"], stars["dec"] = visit.wcs.pixel_to_sky(stars["x"], stars["y"])
    return stars


def _summary(
    image: VisitImage, told: CalibrationSummary, characterized: Characterized, seen: Observation, detector: int
) -> FrameSummary:
    ny, nx = image.pixels.shape
    return FrameSummary(
        visit=seen.visit, detector=detector, band=seen.band, physical_filter=seen.physical_filter, ny=ny, nx=nx,
        wcs=image.wcs, midpoint=image.midpoint, exposure_time=image.exposure_time, zero_point=image.zero_point,
        fwhm_px=characterized.fwhm_px, sky_e=told.sky_e, depth_mag=told.depth_mag, wcs_rms_mas=told.wcs_rms_mas,
        n_stars=len(characterized.stars), psf=image.psf,
    )  # fmt: skip
