from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.drp.objects import measure_objects
from payloads.drp.warps import MARGIN
from schemas.drp_tables import object_dtype
from schemas.errors import BadData
from schemas.identity import tract_patch_of
from schemas.image import Mask, MaskedImage
from schemas.skymap import PATCH_PIXELS, tract_ids
from schemas.tables import Table
from tests.payloads.drp.object_sky import MARGIN as SKY_MARGIN
from tests.payloads.drp.object_sky import PATCH, SIDE, TRACT, Coadd, Sky, Thing, coadd, coadds, matched, point_error

Floats = NDArray[np.float64]

FWHM = {"g": 4.6, "r": 4.0, "i": 3.4}
FAINT = 400.0


def grid_of(n: int, rng: np.random.Generator, step: float = 90.0) -> Floats:
    """(n, 2): places in rows, some pixels off them, inside the patch."""
    row, column = np.divmod(np.arange(n), 20)
    return np.stack([140.0 + step * column, 140.0 + step * row], axis=1) + rng.uniform(-3.0, 3.0, (n, 2))


def place(objects: Table) -> tuple[Floats, Floats]:
    box = TRACT.patch_box(PATCH)
    x, y = TRACT.wcs.sky_to_pixel(objects["coord_ra"], objects["coord_dec"])
    return x - box.x0 + SKY_MARGIN, y - box.y0 + SKY_MARGIN


def rows_of(objects: Table, sky: Sky) -> tuple[Table, NDArray[np.bool_]]:
    """The row of each thing, and whether it was found."""
    at = matched(*place(objects), sky)
    return objects[at], at >= 0


@pytest.fixture(scope="module")
def sky() -> Sky:
    """150 stars alone, 60 pairs of stars, 60 galaxies and 20 stars beside galaxies, of many colours."""
    rng = np.random.default_rng(11)
    places = grid_of(300, rng)
    things = []
    for number, (x, y) in enumerate(places):
        flux = {band: float(10 ** rng.uniform(2.4, 5.0)) for band in FWHM}
        thing = Thing(x, y, flux)
        if number >= 210:
            flux = {band: float(10 ** rng.uniform(3.3, 4.5)) for band in FWHM}
            thing = Thing(x, y, flux, rng.uniform(2.0, 5.0), rng.uniform(0.4, 1.0), rng.uniform(0.0, np.pi))
        things.append(thing)
        if 150 <= number < 210 or number >= 280:
            angle, apart = rng.uniform(0.0, 2 * np.pi), rng.uniform(7.0, 11.0)
            other = {band: float(10 ** rng.uniform(3.0, 4.0)) for band in FWHM}
            things.append(Thing(x + apart * np.cos(angle), y + apart * np.sin(angle), other))
    return Sky(things, FWHM)


@pytest.fixture(scope="module")
def objects(sky: Sky) -> Table:
    return measure_objects(coadds(sky), TRACT, PATCH)


def kinds(sky: Sky) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which things are stars, and which have no other within 30 pixels."""
    xy = np.array([(t.x, t.y) for t in sky.things])
    apart = np.hypot(*(xy[:, None] - xy).transpose(2, 0, 1)) + 1e9 * np.eye(len(xy))
    return np.array([t.radius == 0.0 for t in sky.things]), apart.min(1) > 30.0


def pulls(rows: Table, sky: Sky, band: str) -> Floats:
    truth = np.array([t.flux[band] for t in sky.things])
    return (rows[f"{band}_psfFlux"] - truth) / rows[f"{band}_psfFluxErr"]


def test_fluxes_of_stars_alone_are_right_and_their_errors_too(sky: Sky, objects: Table) -> None:
    rows, found = rows_of(objects, sky)
    star, alone = kinds(sky)
    for band in FWHM:
        pull = pulls(rows, sky, band)[found & star & alone]
        assert pull.size > 140
        assert abs(pull.mean()) < 0.3
        assert 0.8 < pull.std() < 1.2


def test_stars_beside_stars_and_galaxies_share_light_rightly(sky: Sky, objects: Table) -> None:
    rows, found = rows_of(objects, sky)
    star, alone = kinds(sky)
    assert found.mean() > 0.98
    pull = np.concatenate([pulls(rows, sky, band)[found & star & ~alone] for band in FWHM])
    assert abs(np.median(pull)) < 0.2
    assert 0.7 < np.diff(np.percentile(pull, [15.9, 84.1]))[0] / 2.0 < 1.4
    assert rows["detect_fromBlend"][found & ~alone].mean() > 0.9
    assert (rows["parentObjectId"][found & star & alone] == 0).all()
    ids, counts = np.unique(rows["parentObjectId"][found & rows["detect_fromBlend"]], return_counts=True)
    assert ids.min() > 0
    assert np.median(counts) == 2


def test_positions_are_right_and_their_errors_too(sky: Sky, objects: Table) -> None:
    rows, found = rows_of(objects, sky)
    star, alone = kinds(sky)
    which = found & star & alone
    box = TRACT.patch_box(PATCH)
    shift = np.array([box.x0 - MARGIN, box.y0 - MARGIN])
    ra, dec = TRACT.wcs.pixel_to_sky(*(np.array([(t.x, t.y) for t in sky.things])[which] + shift).T)
    east = (rows["coord_ra"][which] - ra) * np.cos(np.radians(dec)) / rows["coord_raErr"][which]
    north = (rows["coord_dec"][which] - dec) / rows["coord_decErr"][which]
    for pull in (east, north):
        assert abs(pull.mean()) < 0.3
        assert 0.8 < pull.std() < 1.25


def test_galaxies_are_told_from_stars_and_hold_their_light(sky: Sky, objects: Table) -> None:
    rows, found = rows_of(objects, sky)
    star, alone = kinds(sky)
    truth = np.array([t.flux["r"] for t in sky.things])
    assert (rows["refExtendedness"][found & ~star & alone] == 1.0).all()
    assert rows["refExtendedness"][found & star & alone].mean() < 0.02
    kron = rows["r_kronFlux"][found & ~star & alone] / truth[found & ~star & alone]
    assert np.median(kron) == pytest.approx(0.96, abs=0.03)
    galaxy = found & ~star & alone
    for band in FWHM:
        off = rows[f"{band}_exponentialFlux"] / [t.flux[band] for t in sky.things] - 1.0
        assert abs(np.median(off[galaxy])) < 0.01
    size = rows["exponential_reff_major"] / 0.2 / np.array([max(t.radius, 1.0) for t in sky.things])
    assert np.median(size[galaxy]) == pytest.approx(1.0, abs=0.02)
    assert np.std(size[galaxy]) < 0.1
    wide = rows["shape_xx"] + rows["shape_yy"] - rows["r_ixxPSF"] - rows["r_iyyPSF"]
    assert np.median(wide[found & ~star & alone]) > 5.0 > abs(np.median(wide[found & star & alone]))


def test_what_is_in_one_band_alone_is_found() -> None:
    rng = np.random.default_rng(3)
    faint = 8.0 * point_error(Sky([], FWHM), "i")
    things = [Thing(x, y, {"g": 0.0, "r": 0.0, "i": faint}) for x, y in grid_of(60, rng)]
    sky = Sky(things, FWHM)
    rows, found = rows_of(measure_objects(coadds(sky), TRACT, PATCH), sky)
    assert found.mean() > 0.95
    assert (rows["refBand"][found] == "i").all()
    assert abs(pulls(rows, sky, "g")[found].mean()) < 0.5


def test_half_of_what_has_five_sigma_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(4)
    error = point_error(Sky([]), "r")
    things = [Thing(x, y, {"r": 5.0 * error}) for x, y in grid_of(400, rng)]
    sky = Sky(things, seed=5)
    objects = measure_objects(coadds(sky), TRACT, PATCH)
    _, found = rows_of(objects, sky)
    assert 0.38 < found.mean() < 0.62
    assert len(objects) - found.sum() <= 4  # one a patch and band is expected of Gaussian noise


def test_a_patch_without_objects_or_without_pixels_has_no_rows() -> None:
    empty = Sky([], seed=9)
    assert len(measure_objects(coadds(empty), TRACT, PATCH)) <= 3
    blind = {band: hidden(one, np.s_[:, :]) for band, one in coadds(empty).items()}
    assert len(measure_objects(blind, TRACT, PATCH)) == 0


def hidden(one: Coadd, part: tuple[slice, slice], bits: int = Mask.NO_DATA) -> Coadd:
    """A coadd with NaN, infinite variance and bits in a part of it."""
    image, mask, variance = (plane.copy() for plane in (one.pixels.image, one.pixels.mask, one.pixels.variance))
    image[part], variance[part] = np.nan, np.inf
    mask[part] |= np.uint16(bits)
    return replace(one, pixels=MaskedImage(image, mask, variance))


def test_a_band_that_lacks_or_has_holes_is_null_there_and_flagged() -> None:
    rng = np.random.default_rng(6)
    bands = {"g": 4.2, "r": 4.0}
    things = [Thing(x, y, dict.fromkeys(bands, 5000.0)) for x, y in grid_of(40, rng)]
    sky = Sky(things, bands)
    given = coadds(sky)
    given["g"] = hidden(given["g"], np.s_[:, : SIDE // 2])
    rows, found = rows_of(measure_objects(given, TRACT, PATCH), sky)
    assert found.all()
    blind = np.array([t.x for t in things]) < SIDE // 2 - 30
    assert np.isnan(rows["g_psfFlux"][blind]).all()
    assert rows["g_psfFlux_flag"][blind].all()
    assert rows["g_pixelFlags_nodata"][blind].all()
    assert np.isfinite(rows["g_psfFlux"][~blind]).sum() >= (~blind).sum() - 1
    for band in "uizy":
        assert np.isnan(rows[f"{band}_psfFlux"]).all()
        assert rows[f"{band}_psfFlux_flag"].all()
    assert (rows["r_inputCount"] == 10).all()
    assert (rows["i_inputCount"] == 0).all()


def test_a_saturated_star_is_one_object_and_spoils_none_beside_it() -> None:
    things = [Thing(600.3, 600.8, {"r": 3e6}), Thing(632.0, 612.0, {"r": 5000.0}), Thing(1500.0, 900.0, {"r": 5000.0})]
    sky = Sky(things)
    one = coadd(sky, "r")
    image, mask = one.pixels.image.copy(), one.pixels.mask.copy()
    burnt = image > 40_000.0
    assert 20 < burnt.sum() < 200
    image[burnt], mask[burnt] = 40_000.0, Mask.SAT
    mask[612, 635] = Mask.CR
    given = replace(one, pixels=MaskedImage(image, mask, one.pixels.variance))
    objects = measure_objects({"r": given}, TRACT, PATCH)
    rows, found = rows_of(objects, sky)
    assert found.all()
    assert len(objects) == 3
    assert rows["r_pixelFlags_saturatedCenter"].tolist() == [True, False, False]
    assert rows["r_pixelFlags_saturated"].tolist() == [True, False, False]
    assert rows["r_pixelFlags_cr"].tolist() == [False, True, False]
    assert not rows["r_pixelFlags_crCenter"].any()
    assert np.abs(pulls(rows, sky, "r"))[1:].max() < 4.0


def test_only_what_lies_in_the_patch_is_in_its_table() -> None:
    edge = float(MARGIN)
    things = [Thing(x, 700.0, {"r": 1e4}) for x in (edge - 4.5, edge + 4.5, edge + PATCH_PIXELS + 2.0)]
    sky = Sky([*things, Thing(900.0, edge + 5.0, {"r": 1e4}), Thing(900.0, edge - 5.0, {"r": 1e4})])
    objects = measure_objects(coadds(sky), TRACT, PATCH)
    _, found = rows_of(objects, sky)
    assert found.tolist() == [False, True, False, True, False]
    assert objects["detect_isPatchInner"].all()
    assert np.abs(pulls(rows_of(objects, sky)[0], sky, "r"))[found].max() < 4.0  # the other of the pair is fitted, too


def test_rows_say_where_they_are_and_have_ids_of_their_own(objects: Table) -> None:
    assert objects.dtype == object_dtype()
    assert np.unique(objects["objectId"]).size == len(objects)
    assert {tract_patch_of(int(number)) for number in objects["objectId"]} == {(TRACT.id, PATCH)}
    inner = tract_ids(objects["coord_ra"], objects["coord_dec"]) == TRACT.id
    np.testing.assert_array_equal(objects["detect_isTractInner"], inner)
    np.testing.assert_array_equal(objects["detect_isPrimary"], inner)
    _, y = place(objects)
    assert (np.diff(y) >= -1e-6).all()


def test_the_same_coadds_give_the_same_table_also_when_they_cannot_be_written_to() -> None:
    rng = np.random.default_rng(8)
    given = coadds(Sky([Thing(x, y, {"r": 3000.0}, 3.0 * (x > 500.0)) for x, y in grid_of(12, rng)]))
    once = measure_objects(given, TRACT, PATCH)
    for one in given.values():
        for plane in (one.pixels.image, one.pixels.mask, one.pixels.variance, one.psf.components, one.depth):
            plane.flags.writeable = False
    assert len(once) == 12
    assert measure_objects(given, TRACT, PATCH).tobytes() == once.tobytes()


@pytest.mark.parametrize("wrong", ["none", "band", "grid", "shape"])
def test_coadds_that_are_not_the_patchs_are_refused_by_name(wrong: str) -> None:
    good = coadd(Sky([]), "r")
    given: dict[str, Coadd] = {
        "none": {},
        "band": {"w": good},
        "grid": {"r": replace(good, wcs=good.wcs.shifted(1, 0))},
        "shape": {"r": replace(good, depth=good.depth[1:])},
    }[wrong]
    with pytest.raises(BadData, match=f"tract {TRACT.id} patch {PATCH}"):
        measure_objects(given, TRACT, PATCH)


def test_every_column_is_filled_in_bands_that_were_observed(objects: Table) -> None:
    def dull(name: str) -> bool:
        column = objects[name]
        return bool(np.isnan(column).all()) if column.dtype.kind == "f" else bool((column == column[0]).all())

    constant = {"tract", "patch", "detect_isPatchInner", "coord_flag", "detect_isTractInner", "detect_isPrimary"}
    names: Sequence[str] = [n for n in objects.dtype.names or () if n[:2] not in {"u_", "z_", "y_"}]
    dead = [n for n in names if dull(n) and n not in constant and not n.endswith("Count") and "lag" not in n]
    assert dead == []
