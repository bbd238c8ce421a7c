from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.drp.forced import forced_sources
from schemas.drp_tables import forced_source_dtype, object_dtype
from schemas.errors import BadData
from schemas.identity import object_id
from schemas.image import Image, Mask, MaskedImage, Psf, VisitImage
from schemas.tables import Table, nulls
from schemas.wcs import Wcs
from tests.payloads.drp.object_sky import HALF, PATCH, TRACT, kernel

Floats = NDArray[np.float64]

NY, NX, NOISE, FWHM = 900, 1000, 20.0, 4.5
PLACE = {"visit": 2026112100012, "detector": 94, "tract": TRACT.id, "patch": PATCH}


def wcs() -> Wcs:
    box = TRACT.patch_box(PATCH)
    return TRACT.wcs.shifted(box.x0 + 200.0, box.y0 + 300.0)


def visit_image(x: Floats, y: Floats, flux: Floats, seed: int = 1) -> VisitImage:
    image = np.random.default_rng(seed).normal(0.0, NOISE, (NY, NX))
    for a, b, f in zip(x, y, flux, strict=True):
        ix, iy = round(a), round(b)
        light = kernel(FWHM, a - ix, b - iy)
        if HALF <= ix < NX - HALF and HALF <= iy < NY - HALF:
            image[iy - HALF : iy + HALF + 1, ix - HALF : ix + HALF + 1] += f * light
    pixels = MaskedImage(
        image.astype(np.float32), np.zeros((NY, NX), np.uint16), np.full((NY, NX), NOISE**2, np.float32)
    )
    return VisitImage(pixels, wcs(), Psf(kernel(FWHM)[None].astype(np.float32), 0, (NY, NX)), 1.0, "r", 1.77e9, 30.0)


def objects_at(x: Floats, y: Floats, flux: Floats) -> Table:
    rows = nulls(object_dtype(), x.size)
    rows["coord_ra"], rows["coord_dec"] = wcs().pixel_to_sky(x, y)
    rows["objectId"] = [object_id(TRACT.id, PATCH, number) for number in range(x.size)]
    rows["tract"], rows["patch"], rows["r_psfFlux"] = TRACT.id, PATCH, flux
    return rows


def spread(n: int, seed: int = 2) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(n), 19)
    return 40.0 + 48.0 * column + rng.uniform(-3, 3, n), 40.0 + 48.0 * row + rng.uniform(-3, 3, n)


def test_fluxes_are_right_and_their_errors_too_also_of_what_the_visit_does_not_show() -> None:
    x, y = spread(300)
    flux = 10 ** np.random.default_rng(3).uniform(0.0, 4.5, 300)
    rows = forced_sources(visit_image(x, y, flux), objects_at(x, y, flux), **PLACE)
    assert rows.dtype == forced_source_dtype()
    pull = (rows["psfFlux"] - flux) / rows["psfFluxErr"]
    assert abs(pull.mean()) < 0.2
    assert 0.85 < pull.std() < 1.15
    assert not rows["psfFlux_flag"].any()


def test_neighbours_share_their_light() -> None:
    x, y = spread(150)
    angle = np.random.default_rng(4).uniform(0.0, 2 * np.pi, 150)
    x, y = np.append(x, x + 5.0 * np.cos(angle)), np.append(y, y + 5.0 * np.sin(angle))
    flux = np.append(np.full(150, 8000.0), np.full(150, 2000.0))
    rows = forced_sources(visit_image(x, y, flux), objects_at(x, y, flux), **PLACE)
    pull = (rows["psfFlux"] - flux) / rows["psfFluxErr"]
    for part in (pull[:150], pull[150:]):
        assert abs(part.mean()) < 0.3
        assert 0.8 < part.std() < 1.2
    alone = NOISE / np.sqrt(np.sum(kernel(FWHM) ** 2))
    assert 1.05 < np.median(rows["psfFluxErr"]) / alone < 2.0


def test_what_is_not_shown_adds_no_noise_to_its_neighbour() -> None:
    x, y = np.array([500.0, 502.0]), np.array([400.0, 400.0])
    flux = np.array([5000.0, 10.0])
    rows = forced_sources(visit_image(x, y, flux), objects_at(x, y, flux), **PLACE)
    alone = NOISE / np.sqrt(np.sum(kernel(FWHM) ** 2))
    assert rows["psfFluxErr"][0] == pytest.approx(alone, rel=0.02)


def test_an_object_that_flared_up_is_seen_though_its_mean_is_nothing() -> None:
    x, y = np.array([500.0, 506.0]), np.array([400.0, 400.0])
    now = np.array([4000.0, 8000.0])
    rows = forced_sources(visit_image(x, y, now), objects_at(x, y, np.array([4000.0, np.nan])), **PLACE)
    assert (np.abs(rows["psfFlux"] - now) < 4.0 * rows["psfFluxErr"]).all()


def test_rows_are_those_on_the_image_and_say_where_and_when() -> None:
    x, y = np.array([-5.0, 300.0, NX + 4.0, 600.0]), np.array([100.0, 500.0, 50.0, 30.0])
    objects = objects_at(x, y, np.full(4, 1e3))
    rows = forced_sources(visit_image(x, y, np.full(4, 1e3)), objects, **PLACE)
    np.testing.assert_array_equal(rows["objectId"], objects["objectId"][[1, 3]])
    np.testing.assert_array_equal(rows["coord_ra"], objects["coord_ra"][[1, 3]])
    assert (rows["visit"][0], rows["detector"][0], rows["band"][0]) == (PLACE["visit"], 94, "r")
    assert rows["expMidptMJD"][0] == pytest.approx(40587.0 + 1.77e9 / 86400.0)
    assert len(forced_sources(visit_image(x, y, np.zeros(4)), objects[:0], **PLACE)) == 0


def test_masked_pixels_and_rims_are_flagged() -> None:
    x, y = np.array([300.0, 500.0, 700.0, 4.0, 250.0]), np.array([500.0, 500.0, 500.0, 500.0, 250.0])
    image = visit_image(x, y, np.full(5, 5e3))
    mask, values = image.pixels.mask.copy(), image.pixels.image.copy()
    mask[495:506, 295:306] = Mask.SAT
    mask[500, 503] = Mask.CR
    mask[500, 700] = Mask.INTRP
    values[500, 700] = np.nan
    image = replace(image, pixels=MaskedImage(values, mask, image.pixels.variance))
    rows = forced_sources(image, objects_at(x, y, np.full(5, 5e3)), **PLACE)
    assert rows["psfFlux_flag"].tolist() == [True, False, False, True, False]
    assert np.isnan(rows["psfFlux"]).tolist() == [True, False, False, False, False]
    assert rows["pixelFlags_saturatedCenter"].tolist() == [True, False, False, False, False]
    assert rows["pixelFlags_cr"].tolist() == [False, True, False, False, False]
    assert rows["pixelFlags_crCenter"].tolist() == [False, False, False, False, False]
    assert rows["pixelFlags_interpolatedCenter"].tolist() == [False, False, True, False, False]
    assert (np.abs(rows["psfFlux"] - 5e3) < 4.5 * rows["psfFluxErr"])[[1, 2, 4]].all()


def test_an_image_without_a_usable_pixel_gives_null_fluxes() -> None:
    x, y = np.array([300.0, 310.0]), np.array([500.0, 500.0])
    image = visit_image(x, y, np.zeros(2))
    nothing: Image = np.full((NY, NX), np.nan, np.float32)
    blind = replace(image, pixels=MaskedImage(nothing, image.pixels.mask, image.pixels.variance))
    rows = forced_sources(blind, objects_at(x, y, np.zeros(2)), **PLACE)
    assert np.isnan(rows["psfFlux"]).all()
    assert rows["psfFlux_flag"].all()


def test_objects_that_do_not_fit_are_refused_by_name() -> None:
    x, y = np.array([300.0]), np.array([500.0])
    image, objects = visit_image(x, y, np.zeros(1)), objects_at(x, y, np.zeros(1))
    with pytest.raises(BadData, match=r"visit 2026112100012 detector 94: .* another patch"):
        forced_sources(image, objects, **{**PLACE, "patch": PATCH + 1})
    with pytest.raises(BadData, match="lack r_psfFlux"):
        forced_sources(image, objects[[n for n in object_dtype().names or () if n != "r_psfFlux"]], **PLACE)
    lost = objects.copy()
    lost["coord_ra"] = np.nan
    with pytest.raises(BadData, match="has no place"):
        forced_sources(image, lost, **PLACE)
