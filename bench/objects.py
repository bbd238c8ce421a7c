"""What a patch's objects cost, and how right they are, against the truth and against `sep` as it comes.

    python -m bench.objects [BAND ...]

One patch of the simulated sky, its deep coadds of 600 s in bands (r) drawn by the simulator with noise for a margin:
completeness, fluxes of stars and of discs, positions, star or galaxy, false detections. Core-seconds: of this process,
with the kernels loaded. The peer: `sep.extract` at 5 sigma of the sky with its own defaults, flux and position, on the
same pixels, its PSF flux being its automatic (Kron) one. Lost or false is what has no match within 2 pixels.
"""

import sys
from dataclasses import dataclass
from itertools import pairwise
from time import process_time

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from payloads.drp.objects import measure_objects
from payloads.drp.warps import MARGIN
from schemas.image import Image, MaskedImage, Psf, Template
from schemas.skymap import PATCH_PIXELS, Tract, tract_at
from schemas.tables import Table
from schemas.wcs import Wcs
from simulators.camera.products import TEMPLATE_MJD, template_patch
from simulators.sky.sky import Sky
from tests.payloads.drp.object_sky import Coadd

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SEED, PATCH, SIDE = 7, 205, PATCH_PIXELS + 2 * MARGIN
EDGE, NEAR = 20.0, 2.0
MAGNITUDES = np.arange(17.0, 25.01, 1.0)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What was found: pixels of the patch, nJy and its error; whether extended."""

    x: Floats
    y: Floats
    flux: Floats
    error: Floats
    extended: Flags


def coadd_of(template: Template) -> Coadd:
    """A template and a margin of noise about it."""
    inner, sky = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN], np.float32(np.percentile(template.pixels.variance, 10.0))
    image = np.random.default_rng(SEED).normal(0.0, sky**0.5, (SIDE, SIDE)).astype(np.float32)
    mask, variance = np.zeros((SIDE, SIDE), np.uint16), np.full((SIDE, SIDE), sky, np.float32)
    image[inner], mask[inner], variance[inner] = template.pixels.image, template.pixels.mask, template.pixels.variance
    psf = Psf(template.psf.components, template.psf.order, (SIDE, SIDE))
    return Coadd(MaskedImage(image, mask, variance), template.wcs.shifted(-MARGIN, -MARGIN), psf,
                 np.full((SIDE, SIDE), 20, np.uint16))  # fmt: skip


def truth_of(wcs: Wcs, band: str) -> tuple[Table, Floats, Floats]:
    middle = (PATCH_PIXELS - 1) / 2.0
    ra, dec = (float(c) for c in wcs.pixel_to_sky(middle, middle))
    sources = Sky(SEED).sources(ra, dec, 0.09, band, TEMPLATE_MJD)
    sources = sources[sources["template_flux"] > 0.0]
    x, y = wcs.sky_to_pixel(sources["ra"], sources["dec"])
    inside = (x > EDGE) & (y > EDGE) & (x < PATCH_PIXELS - EDGE) & (y < PATCH_PIXELS - EDGE)
    return sources[inside], x[inside], y[inside]


def ours(objects: Table, wcs: Wcs, band: str) -> Catalogue:
    x, y = wcs.sky_to_pixel(objects["coord_ra"], objects["coord_dec"])
    extended = objects["refExtendedness"] == 1.0
    flux = np.where(extended, objects[f"{band}_exponentialFlux"], objects[f"{band}_psfFlux"])
    error = np.where(extended, objects[f"{band}_exponentialFluxErr"], objects[f"{band}_psfFluxErr"])
    return Catalogue(x, y, flux.astype(np.float64), error.astype(np.float64), extended)


def theirs(pixels: MaskedImage) -> Catalogue:
    image: Image = np.ascontiguousarray(pixels.image)
    background = sep.Background(image)
    light = image - background
    found = sep.extract(light, 5.0, err=background.globalrms)
    a, b = np.maximum(found["a"], 0.5), np.maximum(found["b"], 0.5)
    radius, _ = sep.kron_radius(light, found["x"], found["y"], a, b, found["theta"], 6.0)
    flux, error, _ = sep.sum_ellipse(light, found["x"], found["y"], a, b, found["theta"], 2.5 * np.maximum(radius, 1.4),
                                     var=pixels.variance)  # fmt: skip
    return Catalogue(found["x"], found["y"], flux, error, np.zeros(len(found), np.bool_))


def judge(name: str, catalogue: Catalogue, sources: Table, x: Floats, y: Floats) -> None:
    places = np.stack([catalogue.x, catalogue.y], axis=1)
    apart, at = cKDTree(places).query(np.stack([x, y], axis=1))
    found, star = apart < NEAR, sources["radius"] == 0.0
    alone = cKDTree(np.stack([x, y], axis=1)).query(np.stack([x, y], axis=1), k=2)[0][:, 1] > 20.0
    magnitude = 31.4 - 2.5 * np.log10(sources["template_flux"])
    inside = np.all((places > EDGE + 8.0) & (places < PATCH_PIXELS - EDGE - 8.0), axis=1)
    false = cKDTree(np.stack([x, y], axis=1)).query(places)[0] > NEAR + 1.0
    print(f"{name}: {len(places)} objects, {np.sum(false & inside)} of them of nothing")
    print("  mag     n  found | stars alone: n, flux off %, pull mean, width, place mas | discs: stars, galaxies")
    pull = (catalogue.flux[at] - sources["template_flux"]) / catalogue.error[at]
    off = catalogue.flux[at] / sources["template_flux"] - 1.0
    for low, high in pairwise(MAGNITUDES):
        here = (magnitude >= low) & (magnitude < high)
        if not here.any():
            continue
        good, disc = here & found & star & alone, catalogue.extended[at] & found
        stars, galaxies = part(disc, here & found & star), part(disc, here & found & ~star)
        width = np.diff(np.nanpercentile(pull[good], [15.9, 84.1]))[0] / 2.0 if good.any() else np.nan
        place = 200.0 * np.sqrt(np.nanmean((catalogue.x[at] - x)[good] ** 2)) if good.any() else np.nan
        print(
            f"  {low:.0f}-{high:.0f} {here.sum():4d} {found[here].mean():6.3f} |"
            f" {good.sum():4d} {100 * np.nanmedian(off[good]):7.2f} {np.nanmean(np.clip(pull[good], -8, 8)):6.2f}"
            f" {width:6.2f} {place:6.1f} | {stars:5.2f} {galaxies:5.2f}"
        )


def part(flags: Flags, where: Flags) -> float:
    return float(flags[where].mean()) if where.any() else float("nan")


def main() -> None:
    bands = sys.argv[1:] or ["r"]
    center = tract_at(150.0, -20.0)
    tract = Tract(center.id, center.ra, center.dec)
    templates = {band: template_patch(Sky(SEED), SEED, tract, PATCH, band) for band in bands}
    coadds = {band: coadd_of(template) for band, template in templates.items()}
    measure_objects(coadds, tract, PATCH)
    begun = process_time()
    objects = measure_objects(coadds, tract, PATCH)
    print(f"{len(objects)} objects in {', '.join(bands)}: {process_time() - begun:.1f} core-s")
    for band in bands:
        sources, x, y = truth_of(templates[band].wcs, band)
        judge(f"{band}, measure_objects", ours(objects, templates[band].wcs, band), sources, x, y)
        begun = process_time()
        catalogue = theirs(templates[band].pixels)
        print(f"sep: {process_time() - begun:.1f} core-s")
        judge(f"{band}, sep", catalogue, sources, x, y)


if __name__ == "__main__":
    main()
