"""A night in a few facts, without any machinery."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from backbone.journal import MemoryJournal
from schemas.events import AssociationDue, DiaSourcesReady, NextVisit, VisitAssigned
from schemas.identity import DatasetId
from schemas.image import Observation
from tests.actors.association_place import STARTED, VISIT, Place, Watched


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


@pytest.fixture
def plan() -> Callable[..., NextVisit]:
    def make(group: str = "g1", start: float = 100.0, ra: float = 10.0, **changes: object) -> NextVisit:
        fields = {"instrument": "LSSTCam", "filters": "r_57", "rotation": 0.0, "dec": -30.0, "duration": 36.0,
                  "n_images": 2} | changes  # fmt: skip
        return NextVisit(group=group, start_time=start, ra=ra, **fields)

    return make


@pytest.fixture
def observation() -> Callable[..., Observation]:
    def make(group: str = "g1", visit: int = 2026070500001, snap: int = 1) -> Observation:
        return Observation(
            instrument="LSSTCam", group=group, visit=visit, exposure=visit + snap, snap=snap, n_snaps=2,
            image_name=f"MC_O_20260705_{visit % 100_000 + snap:06d}", physical_filter="r_57", band="r", ra=10.0,
            dec=-30.0, rotation=0.0, exposure_time=15.0, started=100.0 + 18 * snap, readout_ended=118.0 + 18 * snap,
        )  # fmt: skip

    return make


@pytest.fixture
def assigned(plan: Callable[..., NextVisit]) -> Callable[..., VisitAssigned]:
    def make(detector: int = 94, **of_plan: object) -> VisitAssigned:
        visit_plan = plan(**of_plan)
        return VisitAssigned(group=visit_plan.group, detector=detector, visit_plan=visit_plan, band="r")

    return make


@pytest.fixture
def measured(observation: Callable[..., Observation]) -> Callable[..., DiaSourcesReady]:
    def make(group: str = "g1", detector: int = 94, visit: int = 2026070500001) -> DiaSourcesReady:
        products = DatasetId(dataset_type="dia_products", instrument="LSSTCam", visit=visit, detector=detector)
        return DiaSourcesReady(
            group=group, instrument="LSSTCam", visit=visit, detector=detector, observation=observation(group, visit),
            count=3, products=products, stages={}, summary={},
        )  # fmt: skip

    return make


@pytest.fixture
def place(tmp_path: Path, journal: MemoryJournal) -> Place:
    return Place(Watched(tmp_path, journal))


@pytest.fixture
def due(measured: Callable[..., DiaSourcesReady]) -> Callable[..., AssociationDue]:
    def make(group: str = "g1", visit: int = VISIT, started: float = STARTED) -> AssociationDue:
        told = measured(group, visit=visit)
        seen = replace(told.observation, started=started + 18.0, readout_ended=started + 36.0)
        told = told.model_copy(update={"observation": seen})
        return AssociationDue(group=group, visit=visit, detector=94, sources=told)

    return make
