from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.image import Calibration, Image
from schemas.instrument import camera
from schemas.wcs import separation_arcsec
from simulators.camera.exposure import FocalPlane
from simulators.camera.hits import streak
from simulators.camera.optics import conditions, true_wcs
from simulators.camera.products import TEMPLATE_FWHM_ARCSEC, template_variance
from simulators.camera.psf import PsfField
from simulators.camera.truth import artifacts_truth, sources_truth, spoilt, write_truth
from simulators.sky.sources import Kind
from tests.simulators.camera.conftest import (
    SCIENCE,
    SEED,
    STARTED,
    FixedSky,
    exposed,
    recipe_of,
    remove_signature,
    rows_at,
)

DETECTOR = camera("LSSTCam")[SCIENCE]


def test_truth_names_the_sources_on_the_detector(plane: FocalPlane, charge: Image, sky: FixedSky) -> None:
    recipe = recipe_of(exposed())
    table = sources_truth(plane.field(recipe, SCIENCE), recipe, charge)
    assert set(table["id"]) <= set(sky.rows["id"])
    assert len(table) > 480
    still = table[table["kind"] != Kind.ASTEROID]
    x, y = plane.field(recipe, SCIENCE).wcs.sky_to_pixel(still["ra"], still["dec"])
    np.testing.assert_allclose((x, y), (still["x"], still["y"]), atol=1e-6)
    assert np.all(table["snr"][table["difference_flux"] == 0.0] == 0.0)
    assert np.all(table["snr"][table["kind"] == Kind.TRANSIENT] > 0.0)
    assert 0.9 < table["usable"].mean() < 1.0


def test_an_asteroid_moves_from_snap_to_snap(plane: FocalPlane, charge: Image) -> None:
    places = []
    for snap in (0, 1):
        recipe = recipe_of(exposed(snap))
        table = sources_truth(plane.field(recipe, SCIENCE), recipe, charge)
        places.append(table[table["kind"] == Kind.ASTEROID])
    apart = separation_arcsec(places[0]["ra"], places[0]["dec"], places[1]["ra"], places[1]["dec"])
    np.testing.assert_allclose(apart, 17.0 * np.hypot([0.3, -0.01], [0.1, 0.005]), rtol=1e-3)


def test_bright_stars_are_told_apart(plane: FocalPlane, charge: Image) -> None:
    recipe = recipe_of(exposed())
    field = plane.field(recipe, SCIENCE)
    table = sources_truth(field, recipe, charge)
    artifacts = artifacts_truth(field, recipe, charge, table)
    saturated = artifacts[artifacts["artifact"] == "saturated"]
    brightest = table[np.argmax(table["flux"])]
    row = saturated[saturated["id"] == brightest["id"]][0]
    assert row["y1"] - row["y0"] > 1000.0 > row["x1"] - row["x0"]
    assert not brightest["usable"]
    assert not table["usable"][np.isin(table["id"], saturated["id"])].any()


def test_a_streak_spoils_what_lies_under_it(sky: FixedSky) -> None:
    plane = FocalPlane(SEED, "LSSTCam", sky)
    for visit in range(2026070500000, 2026070502000):
        path = streak(SEED, visit)
        if path is not None and abs(path.offset) < 100.0:
            break
    assert path is not None
    recipe = recipe_of(exposed(visit=visit))
    charge = plane.charge(recipe, SCIENCE)
    field = plane.field(recipe, SCIENCE)
    table = sources_truth(field, recipe, charge)
    artifacts = artifacts_truth(field, recipe, charge, table)
    ends = artifacts[artifacts["artifact"] == "streak"]
    assert len(ends) == 1
    middle = int((ends["y0"][0] + ends["y1"][0]) / 2), int((ends["x0"][0] + ends["x1"][0]) / 2)
    assert spoilt(field, recipe.observation, charge)[middle]
    without = plane.field(recipe, SCIENCE).light * 15.0
    assert charge[middle] > without[middle] + 0.2 * path.peak


def test_truth_is_written_whole(plane: FocalPlane, charge: Image, tmp_path: Path) -> None:
    recipe = recipe_of(exposed())
    write_truth(tmp_path, recipe, plane.field(recipe, SCIENCE), charge)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "2026070500004-094-artifacts.parquet",
        "2026070500004-094.parquet",
    ]
    table = pq.read_table(tmp_path / "2026070500004-094.parquet")
    assert {"id", "ra", "dec", "x", "y", "difference_flux", "snr", "usable"} <= set(table.column_names)
    assert table.num_rows > 480


def blurred_noise(rng: np.random.Generator, science: Image, template: Image, sigma: float) -> Image:
    """White noise of a template after matching its PSF to the science image's, by Fourier division."""
    size = science.shape[0]
    kernel = np.fft.fft2(np.fft.ifftshift(science)) / np.fft.fft2(np.fft.ifftshift(template))
    return np.fft.ifft2(np.fft.fft2(rng.normal(0.0, sigma, (size, size))) * kernel).real.astype(np.float32)


def test_the_expected_snr_is_what_photometry_of_the_pixels_gives(master: Calibration) -> None:
    """400 transients of one flux, two snaps, all effects: their PSF fluxes scatter as foretold."""
    x, y = (g.ravel() for g in np.meshgrid(np.linspace(200.3, 3890.7, 20), np.linspace(200.6, 3800.2, 20)))
    rows = rows_at(exposed(), DETECTOR, x, y)
    rows["kind"], rows["flux"] = Kind.TRANSIENT, 2500.0
    plane = FocalPlane(SEED, "LSSTCam", FixedSky(rows))
    recipes = [recipe_of(exposed(snap)) for snap in (0, 1)]
    charges = [plane.charge(recipe, SCIENCE) for recipe in recipes]
    raws = [plane.segments(recipe, SCIENCE, charge) for recipe, charge in zip(recipes, charges, strict=True)]
    field = plane.field(recipes[0], SCIENCE)
    empty = FocalPlane(SEED, "LSSTCam", FixedSky(rows[:0])).field(recipes[0], SCIENCE)
    mean_response = float(field.response.mean(dtype=np.float64))
    image = sum(remove_signature(raw, DETECTOR, master, 15.0) for raw in raws)
    image -= 30.0 * mean_response * empty.light / empty.response
    table = sources_truth(field, recipes[0], charges[0])
    per_njy = field.conditions.zero_point * mean_response * 30.0
    template = PsfField(np.array([[TEMPLATE_FWHM_ARCSEC / 0.2, 0, 0, 0, 0, 0], [0.0] * 6, [0.0] * 6]), (4004, 4096))
    rng, measured = np.random.default_rng(3), []
    for row in table:
        i, j = round(row["x"]), round(row["y"])
        dx, dy = row["x"] - i, row["y"] - j
        stamp = image[j - 24 : j + 25, i - 24 : i + 25] / per_njy
        kernel = shifted(field.psf.kernel(row["x"], row["y"], 49), dx, dy)
        noise = blurred_noise(
            rng,
            field.psf.kernel(row["x"], row["y"], 49),
            template.kernel(0, 0, 49),
            template_variance("r") ** 0.5,
        )
        measured.append(np.sum((stamp - noise) * kernel) / np.sum(kernel**2))
    flux = np.array(measured)
    sigma = table["difference_flux"] / table["snr"]
    pull = (flux - 2500.0) / sigma
    assert 12.0 < np.median(table["snr"]) < 60.0
    width = (np.percentile(pull, 84.13) - np.percentile(pull, 15.87)) / 2.0
    assert width == pytest.approx(1.0, abs=0.1)  # 400 sources: 4 % of statistics
    assert abs(np.median(pull)) < 0.5
    assert np.median(flux) == pytest.approx(2500.0, rel=0.01)


def shifted(kernel: Image, dx: float, dy: float) -> Image:
    """A stamp moved by a part of a pixel, by its Fourier phase."""
    fy, fx = np.fft.fftfreq(kernel.shape[0])[:, None], np.fft.fftfreq(kernel.shape[1])[None, :]
    phase = np.exp(-2j * np.pi * (fx * dx + fy * dy))
    return np.fft.ifft2(np.fft.fft2(kernel) * phase).real.astype(np.float32)


def test_photometry_closes_on_bright_stars() -> None:
    """Flux in nJy -> electrons in a 12 arcsec aperture, over the response."""
    recipe = recipe_of(exposed())
    observed = conditions(SEED, exposed(), STARTED + 7.5)
    wcs = true_wcs(SEED, observed, exposed(), DETECTOR)
    rows = rows_at(exposed(), DETECTOR, np.array([1500.2, 2600.8]), np.array([900.4, 3100.1]))
    rows["flux"] = rows["template_flux"] = 2e5
    alone = FocalPlane(SEED, "LSSTCam", FixedSky(rows)).field(recipe, SCIENCE)
    empty = FocalPlane(SEED, "LSSTCam", FixedSky(rows[:0])).field(recipe, SCIENCE)
    light = (alone.light.astype(np.float64) - empty.light) / empty.response
    for x, y in zip(*wcs.sky_to_pixel(rows["ra"], rows["dec"]), strict=True):
        dy, dx = np.mgrid[: light.shape[0], : light.shape[1]]
        within = light[np.hypot(dx - x, dy - y) < 60.0].sum()
        assert within == pytest.approx(2e5 * observed.zero_point, rel=2e-3)
