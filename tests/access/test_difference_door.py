"""`difference_files`: two FITS images in, sources out, against skies of which everything is known."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table as AstropyTable
from astropy.wcs import WCS

from access.difference.door import Differenced, _without_rays, difference_files
from access.difference.images import About, Source, read_picture
from access.difference.masks import read_mask
from access.difference.products import write_products
from actors.stage_times import StageTimes
from schemas.errors import BadData
from schemas.image import Mask, MaskedImage
from schemas.tables import Table, apdb_schema
from simulators.pairs import Pair, Recipe, make_pair, sky_of, write_pair
from tests.access.fits_made_here import sky, written

RECIPE = Recipe(3, shape=(700, 760), stars=900, galaxies=200, transients=12, snr=(15.0, 60.0))
NJY_ZERO_POINT = 31.4
SDSS = Path(__file__).parents[2].parent / "shared" / "data" / "sdss_s82"


@dataclass(frozen=True, eq=False)
class Done:
    """A pair on disk and what came of it."""

    folder: Path
    pair: Pair
    made: Differenced
    stages: dict[str, float]

    @property
    def science(self) -> Path:
        return self.folder / "science.fits"

    @property
    def template(self) -> Path:
        return self.folder / "template.fits"


def difference(science: Path | Source, template: Path | Source, refcat: Path | None = None) -> Differenced:
    one, other = (given if isinstance(given, Source) else Source(given) for given in (science, template))
    return difference_files(one, other, refcat, StageTimes())


@pytest.fixture(scope="session")
def done(session_folder: Path) -> Done:
    pair, folder, times = make_pair(RECIPE), session_folder / "pair", StageTimes()
    write_pair(pair, folder)
    made = difference_files(Source(folder / "science.fits"), Source(folder / "template.fits"), None, times)
    return Done(folder, pair, made, times.seconds)


@pytest.fixture(scope="session")
def written_out(done: Done, session_folder: Path) -> Path:
    out = session_folder / "deep" / "out"
    told = write_products(done.made, out, done.stages)
    assert json.loads((out / "summary.json").read_text("utf-8")) == told
    return out


@pytest.fixture(scope="session")
def refcat(session_folder: Path) -> Path:
    """The stars of the pair's sky, in nJy."""
    ra, dec, mag = (column[: RECIPE.stars] for column in sky_of(RECIPE, np.random.default_rng(RECIPE.seed)))
    flux = 10.0 ** (0.4 * (NJY_ZERO_POINT - mag))
    path = session_folder / "refcat.ecsv"
    AstropyTable({"ra": ra, "dec": dec, "r_flux": flux}).write(path)
    return path


def nearest(sources: Table, truth: AstropyTable) -> tuple[np.ndarray, np.ndarray]:
    """Row and distance (pixels) of the source next to each transient."""
    apart = np.hypot(sources["x"][:, None] - truth["x"], sources["y"][:, None] - truth["y"])
    return apart.argmin(axis=0), apart.min(axis=0)


def check_found(sources: Table, truth: AstropyTable, per_electron: float) -> None:
    """Nearly all within a pixel, of the right sign, with fluxes right within their errors and 3 % over all."""
    row, apart = nearest(sources, truth)
    found = apart < 1.0
    assert found.sum() >= len(truth) - 1
    believed = sources[sources["reliability"] >= 0.5]
    assert len(believed) <= len(truth) + 2
    assert (sources["reliability"][row[found]] >= 0.5).mean() > 0.8
    seen, true = sources[row[found]], truth[found]
    np.testing.assert_array_equal(seen["isNegative"], true["flux"] < 0)
    ratio = seen["psfFlux"] / (np.asarray(true["flux"]) * per_electron)
    error = 1.0 / np.abs(np.asarray(true["snr"]))
    np.testing.assert_array_less(np.abs(ratio - 1.0), 4.0 * error + 0.02)
    assert np.average(ratio, weights=error**-2) == pytest.approx(1.0, abs=0.03)


def test_what_changed_is_found_where_it_is_with_its_sign_and_flux(done: Done) -> None:
    """In the template's electrons, as it is the reference: ten times the science image's."""
    assert done.made.reference == "template"
    sources = done.made.products.sources
    deeper = 10.0 ** (0.4 * (RECIPE.template.zero_point - RECIPE.science.zero_point))
    check_found(sources, done.pair.truth, deeper)
    assert done.made.products.summary["zero_point"] == pytest.approx(deeper, rel=0.02)
    assert 0.95 < done.made.products.summary["score_width"] < 1.05


def test_places_on_the_sky_are_the_truths(done: Done) -> None:
    truth, sources = done.pair.truth, done.made.products.sources
    row, apart = nearest(sources, truth)
    seen, true = sources[row[apart < 1.0]], truth[apart < 1.0]
    off = np.hypot((seen["ra"] - true["ra"]) * np.cos(np.radians(2.0)), seen["dec"] - true["dec"]) * 3600.0
    assert np.median(off) < 0.04


def test_the_other_way_round_signs_are_the_other_way_round(done: Done) -> None:
    """The sharper image as science: its truth is the other's, negated, on its own pixels."""
    made = difference(done.template, done.science)
    truth = done.pair.truth.copy()
    truth["x"], truth["y"] = done.pair.template_wcs.sky_to_pixel(truth["ra"], truth["dec"])
    for name in ("flux", "snr"):
        truth[name] *= -1.0
    check_found(made.products.sources, truth, 1.0)


def test_rows_are_numbered_and_of_no_visit(done: Done) -> None:
    sources = done.made.products.sources
    np.testing.assert_array_equal(sources["diaSourceId"], np.arange(1, len(sources) + 1))
    assert not sources["visit"].any()
    assert len(done.made.products.stamps) == len(sources)


def test_every_stage_is_timed_once(done: Done) -> None:
    expected = {"read", "characterize", "calibrate", "warp", "subtract", "detect", "measure", "score"}
    assert set(done.stages) == expected
    assert all(seconds >= 0.0 for seconds in done.stages.values())


def test_the_difference_is_written_with_its_planes_and_wcs(done: Done, written_out: Path) -> None:
    pixels = done.made.products.difference.pixels
    with fits.open(written_out / "difference.fits", checksum=True) as hdus:
        assert [hdu.name for hdu in hdus[1:]] == ["IMAGE", "VARIANCE", "MASK", "KERNEL", "PSF"]
        np.testing.assert_array_equal(hdus["IMAGE"].data, pixels.image)
        np.testing.assert_array_equal(hdus["VARIANCE"].data, pixels.variance)
        np.testing.assert_array_equal(hdus["MASK"].data, pixels.mask)
        assert hdus["KERNEL"].data.sum() == pytest.approx(done.made.subtraction.kernel_sum, rel=0.02)
        truth = done.pair.truth
        x, y = WCS(hdus["IMAGE"].header).all_world2pix(truth["ra"], truth["dec"], 0)
    assert np.median(np.hypot(x - truth["x"], y - truth["y"])) < 0.05
    np.testing.assert_allclose(
        [x, y], done.made.products.science.wcs.sky_to_pixel(truth["ra"], truth["dec"]), atol=1e-4
    )


def test_the_differences_mask_is_one_that_the_door_reads(done: Done, written_out: Path) -> None:
    mask = read_mask(written_out / "difference.fits", RECIPE.shape)
    kept = np.uint16(Mask.BAD | Mask.SAT | Mask.INTRP | Mask.CR | Mask.EDGE | Mask.NO_DATA | Mask.SUSPECT | Mask.STREAK)
    np.testing.assert_array_equal(mask, done.made.products.difference.pixels.mask & kept)


def test_sources_are_written_with_all_official_columns(done: Done, written_out: Path) -> None:
    official = list(apdb_schema()["DiaSource"])
    assert len(official) == 103
    parquet = pq.read_table(written_out / "dia_sources.parquet")
    ecsv = AstropyTable.read(written_out / "dia_sources.ecsv")
    sources = done.made.products.sources
    assert set(parquet.column_names) == set(ecsv.colnames) == set(official)
    for name in ("diaSourceId", "ra", "dec", "psfFlux", "psfFluxErr", "isNegative", "reliability"):
        np.testing.assert_array_equal(parquet[name].to_numpy(), sources[name])
        np.testing.assert_allclose(np.asarray(ecsv[name]), sources[name], rtol=1e-6)


def test_the_summary_says_what_was_made(done: Done, written_out: Path) -> None:
    told = json.loads((written_out / "summary.json").read_text("utf-8"))
    sources = done.made.products.sources
    assert told["dia_sources"]["all"] == len(sources)
    assert told["dia_sources"]["negative"] == sources["isNegative"].sum()
    assert told["stages"] == done.stages
    assert told["seconds"] == pytest.approx(sum(done.stages.values()))
    assert told["figures"]["n_matched"] > 20
    assert told["calibrated_against"] == "template"
    assert 0.5 < told["usable_fraction"] < 1.0


def test_the_picture_is_a_png(written_out: Path) -> None:
    content = (written_out / "difference.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000


def test_products_take_the_place_of_older_ones(done: Done, written_out: Path) -> None:
    write_products(done.made, written_out, done.stages)
    assert sorted(path.name for path in written_out.iterdir()) == [
        "dia_sources.ecsv", "dia_sources.parquet", "difference.fits", "difference.png", "summary.json",
    ]  # fmt: skip


def test_with_a_catalogue_fluxes_are_in_njy(done: Done, refcat: Path) -> None:
    made = difference(done.science, done.template, refcat)
    assert made.reference == "catalogue"
    njy = 10.0 ** (0.4 * (NJY_ZERO_POINT - RECIPE.science.zero_point))
    check_found(made.products.sources, done.pair.truth, njy)
    assert made.products.summary["zero_point"] == pytest.approx(njy, rel=0.003)


def test_a_template_too_is_laid_upon_the_catalogue(done: Done, refcat: Path, tmp_path: Path) -> None:
    """Neither its place, 2 arcsec off, nor its unit need be the catalogue's."""
    moved = tmp_path / "template.fits"
    with fits.open(done.template) as hdus:
        hdus[0].header["CRPIX1"] += 10.0
        hdus.writeto(moved)
    made = difference(done.science, moved, refcat)
    njy = 10.0 ** (0.4 * (NJY_ZERO_POINT - RECIPE.science.zero_point))
    check_found(made.products.sources, done.pair.truth, njy)


def test_with_a_catalogue_the_sharper_image_may_be_the_science_image(done: Done, refcat: Path) -> None:
    made = difference(done.template, done.science, refcat)
    njy = 10.0 ** (0.4 * (NJY_ZERO_POINT - RECIPE.science.zero_point))
    turned = done.pair.truth.copy()
    turned["flux"] *= -1.0
    turned["x"], turned["y"] = made.products.difference.wcs.sky_to_pixel(turned["ra"], turned["dec"])
    check_found(made.products.sources, turned, njy)


@pytest.mark.parametrize("kind", ["csv", "fits", "parquet"])
def test_a_catalogue_may_be_a_table_of_any_make(kind: str, refcat: Path, done: Done, tmp_path: Path) -> None:
    table = AstropyTable.read(refcat)
    table["pm_ra"], table["variable"] = 0.0, False
    table["r_flux"] = np.ma.masked_less(table["r_flux"], 500.0)
    table.write(tmp_path / f"stars.{kind}")
    made = difference(done.science, done.template, tmp_path / f"stars.{kind}")
    assert made.products.summary["n_matched"] > 20


@pytest.mark.parametrize("column", ["ra", "dec", "r_flux"])
def test_a_catalogue_that_lacks_a_column_is_refused_by_name(
    column: str, done: Done, refcat: Path, tmp_path: Path
) -> None:
    table = AstropyTable.read(refcat)
    table.remove_column(column)
    table.write(tmp_path / "stars.ecsv")
    with pytest.raises(BadData, match=rf"stars\.ecsv has no column {column}$"):
        difference(done.science, done.template, tmp_path / "stars.ecsv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stars.ecsv", "not a table"),
        ("stars.csv", "ra,dec,r_flux\n10:00:00,2.0,5.0\n"),
        ("stars.csv", "ra,dec,r_flux\n"),
        ("stars.parquet", "ra"),
        ("stars.fits", ""),
        ("stars.xyz", "ra dec\n1 2\n"),
        ("absent/stars.csv", None),
    ],
)
def test_a_catalogue_that_is_none_is_refused_by_name(
    name: str, content: str | None, done: Done, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=r"stars\."):
        difference(done.science, done.template, path)


def with_cards(path: Path, new: Path, **cards: float) -> Path:
    """The same image under another header."""
    with fits.open(path) as hdus:
        header = hdus[0].header.copy()
        header.update(cards)
        fits.PrimaryHDU(hdus[0].data, header).writeto(new)
    return new


@pytest.mark.parametrize("dec", [2.05, 2.6, -88.0])
def test_a_template_of_quite_another_place_is_refused_and_named(dec: float, done: Done, tmp_path: Path) -> None:
    elsewhere = with_cards(done.template, tmp_path / "elsewhere.fits", CRVAL2=dec)
    with pytest.raises(BadData, match=r"science\.fits against .*elsewhere\.fits: "):
        difference(done.science, elsewhere)


@pytest.mark.parametrize("arcsec", [1.0, 10.0, -12.0, 30.0, -38.0])
def test_a_wcs_that_is_off_by_arcseconds_is_set_right(arcsec: float, done: Done, tmp_path: Path) -> None:
    off = with_cards(done.science, tmp_path / "off.fits", CRVAL2=2.0 + arcsec / 3600.0)
    made = difference(off, done.template)
    check_found(made.products.sources, done.pair.truth, made.products.summary["zero_point"])
    assert made.products.summary["offset_arcsec"] == pytest.approx(abs(arcsec), abs=0.1)


@pytest.mark.parametrize("arcsec", [45.0, -60.0])
@pytest.mark.parametrize("axis", ["CRVAL1", "CRVAL2"])
def test_a_wcs_that_is_off_by_more_is_refused_by_name(axis: str, arcsec: float, done: Done, tmp_path: Path) -> None:
    middle = fits.getval(done.science, axis)
    off = with_cards(done.science, tmp_path / "off.fits", **{axis: middle + arcsec / 3600.0})
    with pytest.raises(BadData, match=r"off\.fits against .*template\.fits: .*(stars match|a false match)"):
        difference(off, done.template)


def test_an_image_on_its_head_is_refused(done: Done, tmp_path: Path) -> None:
    """As its WCS does not say so."""
    with fits.open(done.science) as hdus:
        fits.PrimaryHDU(hdus[0].data[::-1, ::-1], hdus[0].header).writeto(tmp_path / "turned.fits")
    with pytest.raises(BadData, match=r"turned\.fits against"):
        difference(tmp_path / "turned.fits", done.template)


@pytest.mark.parametrize("place", ["science", "template"])
def test_noise_without_a_star_is_refused_by_name(place: str, done: Done, tmp_path: Path) -> None:
    blank = written(tmp_path / "blank.fits", sky(), GAIN=2.5)
    files = {"science": done.science, "template": done.template} | {place: blank}
    with pytest.raises(BadData, match=r"blank\.fits: no star"):
        difference(files["science"], files["template"])


@pytest.mark.parametrize("place", ["science", "template"])
def test_an_image_masked_all_over_is_refused_by_name(place: str, done: Done, tmp_path: Path) -> None:
    fits.PrimaryHDU(np.ones(RECIPE.shape, np.uint8)).writeto(tmp_path / "mask.fits")
    files = {"science": Source(done.science), "template": Source(done.template)}
    files[place] = replace(files[place], mask=tmp_path / "mask.fits")
    with pytest.raises(BadData, match=rf"{place}\.fits: no sky"):
        difference(files["science"], files["template"])


def test_an_image_against_itself_is_refused_as_there_is_no_noise_in_what_is_left(done: Done) -> None:
    with pytest.raises(
        BadData, match=r"science\.fits against .*science\.fits: the difference's noise is 0\.0\d+ times"
    ):
        difference(done.science, done.science)


def test_what_is_told_of_the_images_is_kept_and_their_pixels_are_not(done: Done) -> None:
    for told, view in ((done.made.science, RECIPE.science), (done.made.template, RECIPE.template)):
        assert isinstance(told, About)
        assert (told.gain, told.noise, told.psf) == (view.gain, "sky noise and gain", None)
        assert not any(isinstance(value, MaskedImage | np.ndarray) for value in vars(told).values())


def struck(done: Done, path: Path, rays: int) -> np.ndarray:
    """The science image with rays of 5 pixels on blank sky, and those pixels (rays, 5, 2), rows and columns."""
    rng = np.random.default_rng(6)
    with fits.open(done.science) as hdus:
        image, header = hdus[0].data.copy(), hdus[0].header
    wide = np.lib.stride_tricks.sliding_window_view(image, (15, 15)).max(axis=(2, 3))
    blank = np.argwhere(wide[40:-40, 40:-40] < np.median(image) + 8 * np.std(image[image < np.median(image)])) + 47
    at = blank[rng.choice(len(blank), rays, replace=False)]
    track = at[:, None] + np.array([[k // 2, k] for k in range(5)])
    image[track[..., 0], track[..., 1]] += np.float32(4000.0)
    fits.PrimaryHDU(image, header).writeto(path)
    return track


def test_cosmic_rays_are_found_where_the_mask_tells_of_none(done: Done, tmp_path: Path) -> None:
    track = struck(done, tmp_path / "struck.fits", 25)
    made = difference(tmp_path / "struck.fits", done.template)
    assert (made.products.science.pixels.mask[track[..., 0], track[..., 1]] & Mask.CR != 0).mean() > 0.98
    check_found(made.products.sources, done.pair.truth, made.products.summary["zero_point"])
    middle = track.mean(axis=1)
    apart = np.hypot(
        *(middle[:, None] - np.stack([made.products.sources[c] for c in "yx"], axis=-1)).transpose(2, 0, 1)
    )
    assert (apart.min(axis=1) < 3.0).sum() <= 1


def test_cosmic_rays_that_the_mask_tells_of_are_bridged_and_no_others_looked_for(done: Done, tmp_path: Path) -> None:
    track = struck(done, tmp_path / "struck.fits", 25)
    pixels = read_picture(Source(tmp_path / "struck.fits")).pixels
    assert (_without_rays(pixels).mask[track[..., 0], track[..., 1]] & Mask.CR).any()
    told = track[0, :2]
    pixels.mask[told[:, 0], told[:, 1]] = Mask.CR
    cleaned = _without_rays(pixels)
    changed = np.argwhere(cleaned.image != pixels.image)
    assert {tuple(place) for place in changed} == {tuple(place) for place in told}
    assert (cleaned.mask[told[:, 0], told[:, 1]] == Mask.CR | Mask.INTRP).all()


def test_a_psf_may_be_given_that_is_wider_than_any_of_the_doors_own(done: Done, tmp_path: Path) -> None:
    """So that a star's stamp may reach over the image's edge."""
    rows, columns = np.mgrid[-50:51, -50:51]
    core = RECIPE.science.fwhm_arcsec / RECIPE.pixel_arcsec / (2.0 * np.sqrt(2.0 ** (1.0 / 3.0) - 1.0))
    fits.PrimaryHDU((1.0 + (rows**2 + columns**2) / core**2) ** -3.0).writeto(tmp_path / "psf.fits")
    made = difference(Source(done.science, psf=tmp_path / "psf.fits"), done.template)
    assert made.science.psf is not None
    check_found(made.products.sources, done.pair.truth, made.products.summary["zero_point"])


@pytest.fixture(scope="session")
def sdss() -> Differenced:
    """Stripe 82 in r: run 4192, camcol 4, field 300 less run 6377, field 399, a year and a half later."""
    if not SDSS.is_dir():
        pytest.skip(f"no real images: {SDSS} is not there")
    runs = {"science": "004192-r4-0300", "template": "006377-r4-0399"}
    return difference(*(sdss_source(run) for run in runs.values()))


def sdss_source(run: str) -> Source:
    return Source(SDSS / f"fpC-{run}.fit.gz", mask=SDSS / f"fpM-{run}.fit", gain=4.76)


def test_a_real_pair_has_noise_of_width_one_and_few_sources(sdss: Differenced) -> None:
    assert sdss.products.summary["score_width"] == pytest.approx(1.0, abs=0.05)
    assert 3 <= (sdss.products.sources["reliability"] >= 0.5).sum() <= 30


def test_a_real_pair_is_read_with_its_soft_bias_mask_and_time(sdss: Differenced) -> None:
    read = read_picture(sdss_source("004192-r4-0300"))
    assert np.median(read.pixels.image) < 4.76 * 1000.0
    assert (read.pixels.mask & Mask.SAT).any()
    assert (sdss.products.science.pixels.mask & Mask.SAT).any()
    assert sdss.science.filter == "r"
    assert sdss.science.exposure_time == pytest.approx(53.9, abs=0.1)
    assert sdss.products.summary["wcs_rms_mas"] < 25.0
