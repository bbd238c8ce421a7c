"""The truth of a visit against templates that are the mean of other visits, as the simulated sky was in those."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from access.report.truth_check import Columns
from backbone.butler import ButlerArchive
from cluster.settings import Settings
from cluster.template_truth import TemplateTruth, against
from schemas.clock import mjd_from_tai
from schemas.identity import DatasetId
from schemas.image import Inputs, MaskedImage, Psf, Template
from schemas.skymap import Tract, tract_at
from simulators.ocs.schedule import PlannedVisit, plan_own
from simulators.ocs.week import plan_week
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind

SEED, RADIUS_DEG = 1, 0.06


@pytest.fixture(scope="module")
def plan() -> list[PlannedVisit]:
    return plan_own(SEED, 1)


@pytest.fixture(scope="module")
def week(plan: list[PlannedVisit]) -> list[PlannedVisit]:
    return plan_week(plan, seed=SEED, nights=2, filters=[plan[0].physical_filter], fields=1)


def told(visit: PlannedVisit) -> Columns:
    """The truth as the camera tells it, with a noise of 50 nJy."""
    seen = Sky(SEED).sources(visit.ra, visit.dec, RADIUS_DEG, band_of(visit), mjd_of(visit))
    difference = seen["flux"].astype(float) - seen["template_flux"]
    assert {Kind.VARIABLE, Kind.ASTEROID} <= set(seen["kind"][difference != 0.0])
    columns = {name: seen[name] for name in ("id", "kind", "ra", "dec", "flux", "template_flux")}
    return columns | {"difference_flux": difference, "snr": difference / 50.0, "usable": np.ones(len(seen), bool)}


def band_of(visit: PlannedVisit) -> str:
    return visit.physical_filter[0]


def mjd_of(visit: PlannedVisit) -> float:
    """MJD TAI of its first exposure's middle: its timespan in the Butler."""
    seen = visit.observation(0)
    return mjd_from_tai(seen.started + seen.exposure_time / 2.0)


@pytest.fixture
def settings(tmp_path: Path, week: list[PlannedVisit]) -> Settings:
    """An archive that knows the week's visits."""
    made = Settings(output=tmp_path, detectors=(94,))
    archive = ButlerArchive.create(made.butler)
    archive.register_camera(made.camera)
    for visit in week:
        archive.register_exposure(replace(visit.observation(0), band=band_of(visit)))
    return made


def inputs_of(*visits: PlannedVisit, weight: Sequence[float] = ()) -> Inputs:
    """Templates that are the mean of visits, all of them everywhere."""
    taken = np.full((1, 1024, 1024), 2 ** len(visits) - 1, np.uint16)
    numbers = tuple(visit.observation(0).visit for visit in visits)
    weights = np.array(weight or np.ones(len(visits)), np.float32)
    return Inputs(numbers, np.broadcast_to(weights[:, None, None], (len(visits), 64, 64)).copy(), taken)


def put_templates(settings: Settings, visit: PlannedVisit, inputs: Inputs | None, other: int = -1) -> None:
    archive, tract = ButlerArchive.open(settings.butler), tract_at(visit.ra, visit.dec)
    archive.register_tracts([tract])
    x, y = (int(axis) for axis in tract.wcs.sky_to_pixel(visit.ra, visit.dec))
    reach = int(RADIUS_DEG * 3600.0 / 0.2) + 2
    near = replace(Tract.patch_box(0), x0=x - reach, x1=x + reach, y0=y - reach, y1=y + reach)
    for patch in tract.patches_in(near):
        pixels = MaskedImage(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint16), np.ones((4, 4), np.float32))
        width = 7 if patch == other else 5
        psf = Psf(np.ones((1, width, width), np.float32) / width**2, 0, (4, 4))
        name = DatasetId(dataset_type="template_patch", tract=tract.id, patch=patch, band=band_of(visit))
        archive.put(name, Template(pixels, tract.wcs, psf, band_of(visit), None if patch == other else inputs))


def test_the_simulators_own_templates_are_as_the_camera_tells(settings: Settings, plan: list[PlannedVisit]) -> None:
    put_templates(settings, plan[0], None)
    truth = told(plan[0])
    retold = TemplateTruth(settings, plan, SEED)(truth, plan[0].observation(0).visit)
    for name in truth:
        assert np.allclose(retold[name], truth[name], rtol=1e-6)


def test_what_varies_is_held_to_its_mean_in_the_templates_visits(
    settings: Settings, plan: list[PlannedVisit], week: list[PlannedVisit]
) -> None:
    put_templates(settings, plan[0], inputs_of(*week))
    truth = told(plan[0])
    retold = TemplateTruth(settings, plan, SEED)(truth, plan[0].observation(0).visit)
    wanted = {kind: np.zeros((truth["kind"] == kind).sum()) for kind in Kind}
    for visit in week:
        seen = Sky(SEED).sources(plan[0].ra, plan[0].dec, 2.0 * RADIUS_DEG, band_of(visit), mjd_of(visit))
        flux = dict(zip(seen["id"].tolist(), seen["flux"].tolist(), strict=True))
        for kind in (Kind.STAR, Kind.GALAXY, Kind.VARIABLE, Kind.TRANSIENT):
            ids = truth["id"][truth["kind"] == kind]
            wanted[kind] += np.array([flux.get(int(number), 0.0) for number in ids]) / len(week)
    for kind, template in wanted.items():
        rows = truth["kind"] == kind
        assert np.allclose(retold["template_flux"][rows], template, rtol=1e-6, atol=1e-6), kind
    variable = truth["kind"] == Kind.VARIABLE
    assert (np.abs(retold["template_flux"] - truth["template_flux"])[variable] > 1.0).any()
    assert np.array_equal(retold["difference_flux"], truth["flux"] - retold["template_flux"])


def fluxes(truth: Columns, plan: list[PlannedVisit], visit: PlannedVisit) -> NDArray[np.float64]:
    """nJy, of the truth's sources when a visit looked; 0 of what was not there."""
    seen = Sky(SEED).sources(plan[0].ra, plan[0].dec, 2.0 * RADIUS_DEG, band_of(visit), mjd_of(visit))
    seen = seen[seen["kind"] != Kind.ASTEROID]
    flux = dict(zip(seen["id"].tolist(), seen["flux"].tolist(), strict=True))
    return np.array([flux.get(int(number), 0.0) for number in truth["id"]])


def test_visits_count_by_their_weights_and_not_where_they_were_left_out(
    settings: Settings, plan: list[PlannedVisit], week: list[PlannedVisit]
) -> None:
    inputs = inputs_of(*week[:2], weight=(3.0, 1.0))
    inputs.weight[0, :, :16] = 1.0  # an edge of the first is near
    inputs.taken[:, :, 512:] = 2  # there it was left out
    inputs.taken[:, 512:] = 0  # and there nothing is said
    put_templates(settings, plan[0], inputs)
    truth = told(plan[0])
    retold = TemplateTruth(settings, plan, SEED)(truth, plan[0].observation(0).visit)
    first, second = (fluxes(truth, plan, visit) for visit in week[:2])
    tract = tract_at(plan[0].ra, plan[0].dec)
    x, y = (np.rint(axis).astype(int) % 2048 for axis in tract.wcs.sky_to_pixel(truth["ra"], truth["dec"]))
    expected = np.where(x < 1024, (3.0 * first + second) / 4.0, second)
    expected = np.where(x < 512, (first + second) / 2.0, expected)
    expected = np.where(y < 1024, expected, (first + second) / 2.0)
    assert len({(a, b) for a, b in zip(x < 1024, y < 1024, strict=True)}) > 1
    np.testing.assert_allclose(retold["template_flux"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(retold["usable"], y < 1024)


def test_what_lies_on_the_few_patches_of_another_psf_is_not_counted(
    settings: Settings, plan: list[PlannedVisit], week: list[PlannedVisit]
) -> None:
    truth, tract = told(plan[0]), tract_at(plan[0].ra, plan[0].dec)
    x, y = (np.rint(axis).astype(int) // 2048 for axis in tract.wcs.sky_to_pixel(truth["ra"], truth["dec"]))
    patch = y * 20 + x
    numbers, counts = np.unique(patch, return_counts=True)
    assert len(numbers) > 1
    fewest, most = int(numbers[np.argmin(counts)]), int(numbers[np.argmax(counts)])
    truth["usable"][patch == most] &= np.arange((patch == most).sum()) > 3
    put_templates(settings, plan[0], inputs_of(*week), other=fewest)
    retold = TemplateTruth(settings, plan, SEED)(truth, plan[0].observation(0).visit)
    np.testing.assert_array_equal(retold["usable"], truth["usable"] & (patch != fewest))


def test_the_noise_of_what_differs_stays() -> None:
    truth = {"flux": [100.0, 50.0, 7.0], "template_flux": [0.0, 60.0, 7.0], "difference_flux": [100.0, -10.0, 0.0],
             "snr": [10.0, -2.0, 0.0]}  # fmt: skip
    retold = against({name: np.array(values) for name, values in truth.items()}, np.array([40.0, 40.0, 7.0]))
    assert retold["difference_flux"].tolist() == [60.0, 10.0, 0.0]
    assert retold["snr"].tolist() == [6.0, 2.0, 0.0]
