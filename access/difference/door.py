"""`pachon difference`: two FITS images in, a difference image and its DIASources out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from access.difference.header import common_band
from access.difference.images import About, Picture, Source, read_picture
from access.difference.references import read_references
from payloads.alert_production.pipeline import difference
from payloads.alert_production.registration import references_of
from payloads.alert_production.subtract import Subtraction, warp_template
from payloads.imaging import mask_ops
from payloads.imaging.calibrate import CalibrationSummary, calibrate
from payloads.imaging.characterize import Characterized, characterize
from payloads.imaging.snaps import EXPECTED_FWHM, combine_snaps
from schemas.errors import BadData
from schemas.identity import exposure_id
from schemas.image import DiaProducts, Mask, MaskedImage, Template, VisitImage
from schemas.tables import Table
from schemas.wcs import Wcs, separation_arcsec

_ANY_VISIT = exposure_id(20100101, 1)
"""The door's images belong to no visit; ids are numbered from 1."""


class Stages(Protocol):
    """Times stages: `with stages("subtract"): ...`."""

    seconds: dict[str, float]

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Time a stage."""


@dataclass(frozen=True, eq=False)
class Differenced:
    """All that the door makes. `reference`: what the science image was calibrated against."""

    science: About
    template: About
    products: DiaProducts
    subtraction: Subtraction
    reference: str


def difference_files(science: Source, template: Source, refcat: Path | None, stages: Stages) -> Differenced:
    """Read two images and difference them. Raises BadData, naming the file that cannot be used."""
    with stages("read"):
        one, other = read_picture(science), read_picture(template)
        told, before = one.about, other.about
        with _of(science.image, template.image):
            band = common_band(told.filter, before.filter)
        references = None if refcat is None else read_references(refcat, band)
    with stages("characterize"):
        seen, deep = _characterized(one, science.image), _characterized(other, template.image)
    del one, other  # here and below: what is not needed any more makes room
    with stages("calibrate"), _of(science.image, refcat or template.image):
        known = references_of(deep, before.wcs, band) if references is None else references
        visit, how = _calibrated(seen, known, told, band)
    with stages("calibrate"), _of(template.image, refcat):
        below = _template(deep, references, before, band)
    del seen, deep
    with stages("warp"), _of(science.image, template.image):
        warped = warp_template(below, visit)
    del below
    with _of(science.image, template.image):
        made, subtraction = difference(
            visit, warped, visit=_ANY_VISIT, detector=0, stage=stages, processed=told.midpoint
        )
    products = replace(made, sources=_numbered(made.sources), summary=how.as_dict() | made.summary)
    return Differenced(told, before, products, subtraction, "template" if references is None else "catalogue")


def _characterized(picture: Picture, path: Path) -> Characterized:
    with _of(path):
        found = characterize(_without_rays(picture.pixels))
    return found if picture.about.psf is None else replace(found, psf=picture.about.psf)


def _template(image: Characterized, references: Table | None, about: About, band: str) -> Template:
    """On the catalogue's sky and scale, where there is one: else what its own differ by would shift everything."""
    if references is None:
        return Template(image.pixels, about.wcs, image.psf, band)
    laid, _ = _calibrated(image, references, about, band)
    return Template(laid.pixels, laid.wcs, laid.psf, band)


def _calibrated(
    image: Characterized, references: Table, about: About, band: str
) -> tuple[VisitImage, CalibrationSummary]:
    near = _near(references, about.wcs, image.pixels.shape)
    return calibrate(image, near, about.wcs, band, about.midpoint, about.exposure_time)


def _without_rays(pixels: MaskedImage) -> MaskedImage:
    """Cosmic rays bridged: those that the mask tells of or, if it tells of none, those that are found."""
    if not (pixels.mask & np.uint16(Mask.CR)).any():
        return combine_snaps([pixels], EXPECTED_FWHM)
    image, mask, variance = pixels.image.copy(), pixels.mask.copy(), pixels.variance.copy()
    mask_ops.interpolate(image, variance, mask, Mask.CR, Mask.SAT | Mask.BAD | Mask.NO_DATA, Mask.INTRP)
    return MaskedImage(image, mask, variance)


def _near(references: Table, wcs: Wcs, shape: tuple[int, int]) -> Table:
    """Those within twice an image's reach of its centre: what a fit of cubics says of others is anything."""
    reach = np.hypot(*shape) * wcs.pixel_scale
    centre = wcs.pixel_to_sky(*wcs.crpix)
    result: Table = references[separation_arcsec(references["ra"], references["dec"], *centre) < reach]
    return result


def _numbered(sources: Table) -> Table:
    numbered = sources.copy()
    numbered["visit"], numbered["diaSourceId"] = 0, np.arange(1, sources.size + 1)
    return numbered


@contextmanager
def _of(path: Path, against: Path | None = None) -> Iterator[None]:
    """Name the file, and what it is laid upon, in what the payload finds wrong with them."""
    try:
        yield
    except BadData as error:
        name = path if against is None else f"{path} against {against}"
        raise BadData(f"{name}: {error}") from error
