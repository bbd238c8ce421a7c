import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from payloads.alert_production.pipeline import Context, process_visit
from payloads.imaging.snaps import exposure_time, midpoint
from schemas.errors import BadData
from schemas.image import Calibration, DiaProducts, MaskedImage, Observation, Template
from schemas.instrument import Detector, Format
from schemas.tables import REFCAT_DTYPE, nulls
from schemas.wcs import separation_arcsec
from tests.payloads.alert_production.pairs import NJY_PER_ELECTRON, READ_NOISE, SKY_ELECTRONS, Pair, make_pair

SIDE = 1024
STAGES = ["combine_snaps", "characterize", "calibrate", "warp", "subtract", "detect", "measure", "score"]


def observation(snap: int) -> Observation:
    started = 5.2e9 + 18.0 * snap
    return Observation(
        "LSSTCam", "G", 2026070500004, 2026070500004 + snap, snap, 2, "", "r_57", "r", 150.0, 2.2,
        float(np.degrees(0.3)), 15.0, started, started + 17.0,
    )  # fmt: skip


def snaps_of(pair: Pair) -> list[MaskedImage]:
    """The science image's electrons, dealt to two snaps."""
    rng = np.random.default_rng(0)
    counts = np.maximum(np.rint(pair.science.pixels.image / NJY_PER_ELECTRON + SKY_ELECTRONS), 0).astype(int)
    first = rng.binomial(counts, 0.5)
    return [
        MaskedImage(
            part.astype(np.float32),
            pair.science.pixels.mask.copy(),
            (np.maximum(part, 1) + READ_NOISE**2 / 2).astype(np.float32),
        )
        for part in (first, counts - first)
    ]


def context_of(pair: Pair) -> Context:
    true_wcs = replace(pair.science.wcs, sip=np.zeros((2, 4, 4)))
    refcat = nulls(REFCAT_DTYPE, pair.stars_x.size)
    refcat["id"] = np.arange(1, refcat.size + 1)
    refcat["ra"], refcat["dec"] = true_wcs.pixel_to_sky(pair.stars_x, pair.stars_y)
    refcat["pm_ra"] = refcat["pm_dec"] = 0.0
    refcat["r_flux"], refcat["r_fluxErr"] = pair.stars_flux, 0.01 * pair.stars_flux
    detector = Detector(94, "R22_S11", "R22", Format("TEST", SIDE // 8, SIDE // 2, 0, 0, 0), (0.0, 0.0))
    flat: NDArray[np.float32] = np.ones((1, 1), np.float32)
    unused = Calibration(flat, flat, flat, np.zeros((1, 1), np.uint16), flat, flat, flat, flat)
    return Context(detector, unused, pair.template, refcat)


class Stages:
    """Their names in turn, and whether a template lives as each begins; `snaps` and how many of them are left."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.snaps: list[MaskedImage] = []
        self.left: dict[str, int] = {}
        self.template: Callable[[], Template | None] = lambda: None
        self.with_template: set[str] = set()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.names.append(name)
        self.left[name] = len(self.snaps)
        if self.template() is not None:
            self.with_template.add(name)
        yield


@pytest.fixture(scope="module")
def crowded() -> Pair:
    return make_pair(SIDE, 21, injected=40, density=4.0, snr=(8.0, 60.0), astrometric_error=0.0)


@pytest.fixture(scope="module")
def stages() -> Stages:
    return Stages()


@pytest.fixture(scope="module")
def products(crowded: Pair, stages: Stages) -> DiaProducts:
    visit, context = [observation(0), observation(1)], context_of(crowded)
    given = [replace(context, template=replace(context.template))]
    stages.snaps, stages.template = snaps_of(crowded), weakref.ref(given[0].template)
    return process_visit(stages.snaps, visit, given.pop(), stage=stages, processed=5.2e9 + 60.0)


def test_what_appeared_in_a_visit_is_found_where_it_is_and_as_bright_as_it_is(
    products: DiaProducts, crowded: Pair
) -> None:
    true_wcs = replace(crowded.science.wcs, sip=np.zeros((2, 4, 4)))
    ra, dec = true_wcs.pixel_to_sky(crowded.x, crowded.y)
    separation = separation_arcsec(ra[:, None], dec[:, None], products.sources["ra"], products.sources["dec"])
    found = separation.min(1) < 0.4
    assert found.mean() > 0.85
    row = products.sources[separation.argmin(1)][found]
    assert np.median(row["psfFlux"] / crowded.flux[found]) == pytest.approx(1.0, abs=0.03)
    assert (row["reliability"] > 0.5).mean() > 0.9


def test_little_else_is_found_and_less_is_believed(products: DiaProducts, crowded: Pair) -> None:
    distance = np.hypot(products.sources["x"][:, None] - crowded.x, products.sources["y"][:, None] - crowded.y)
    spurious = products.sources[(distance > 6).all(1)]
    assert spurious.size < 10
    assert (spurious["reliability"] > 0.5).sum() <= 3


def test_the_stages_run_in_their_order(products: DiaProducts, stages: Stages) -> None:
    assert products.sources.size
    assert stages.names == STAGES


def test_snaps_and_template_are_let_go_as_soon_as_they_have_been_used(products: DiaProducts, stages: Stages) -> None:
    """Each is as large as what is made of it."""
    assert products.sources.size
    assert stages.snaps == []
    assert stages.left == {name: 2 if name == "combine_snaps" else 0 for name in STAGES}
    assert stages.with_template == set(STAGES[: STAGES.index("subtract")])


def test_the_products_are_complete(products: DiaProducts) -> None:
    assert len(products.stamps) == products.sources.size
    assert (products.sources["reliabilityVersion"] != "").all()
    assert products.summary["n_sources"] == products.sources.size
    assert all(np.isfinite(value) for value in products.summary.values())
    assert products.science.midpoint == 5.2e9 + 16.5
    assert products.science.exposure_time == 30.0


def test_a_visits_middle_lies_between_its_first_opening_and_its_last_closing() -> None:
    assert midpoint([observation(0), observation(1)]) == 5.2e9 + (0.0 + 33.0) / 2
    assert midpoint([observation(0)]) == observation(0).midpoint
    assert exposure_time([observation(0), observation(1)]) == 30.0


def test_a_snap_without_its_observation_is_refused(crowded: Pair) -> None:
    with pytest.raises(BadData, match="2 snaps with 1 observations"):
        process_visit(snaps_of(crowded), [observation(0)], context_of(crowded), stage=Stages(), processed=0.0)
