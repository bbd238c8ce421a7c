"""What is kept as files: dataset types, what distinguishes their datasets, in which collections they lie.

Names of collections follow Rubin's: `<instrument>/raw/all`, `templates`, `refcats`, and a run a night for what prompt
processing makes, `<instrument>/prompt/<day_obs>`. Calibrations that hold for a time are certified in
`<instrument>/calib`; those that hold whenever none is certified lie in `<instrument>/calib/unbounded`. Templates that
were made of visits are tagged in `templates/made`, and go before those in `templates`.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from schemas.errors import BadData
from schemas.identity import DatasetId, day_obs_of_visit
from schemas.image import Calibration, Raw, Template
from schemas.tables import REFCAT_DTYPE, dtype_of


@dataclass(frozen=True)
class Kind:
    """A dataset type: Butler dimensions and storage class, RUN collection, and what its datasets are here.

    `run` may hold {instrument} and {day_obs}. `table`: the columns of a table, by name.
    """

    name: str
    dimensions: tuple[str, ...]
    storage_class: str
    run: str
    pytype: type
    table: str = ""
    certified: str = ""
    """CALIBRATION collection, in which its datasets hold for a time; it may hold {instrument}."""
    tagged: str = ""
    """TAGGED collection, whose datasets go before those of `run`."""

    @property
    def on_skymap(self) -> bool:
        """Whether its datasets lie on the skymap's tracts."""
        return "skymap" in self.dimensions

    def run_of(self, dataset: DatasetId) -> str:
        """The RUN collection of a dataset."""
        number = dataset.exposure if dataset.exposure is not None else dataset.visit
        return self.run.format(instrument=dataset.instrument, day_obs=day_obs_of_visit(number or 0))

    @property
    def by_night(self) -> bool:
        """Whether each night has a RUN collection of its own."""
        return "{day_obs}" in self.run

    @property
    def runs_pattern(self) -> str:
        """A glob over the RUN collections of this type."""
        return self.run.format(instrument="*", day_obs="*")

    def check_names(self, dataset: DatasetId) -> None:
        """Raise BadData if a dataset id has other values than this type's dimensions."""
        wanted = set(self.dimensions) - {"skymap"}
        given = set(dataset.data_id())
        if wanted != given:
            raise BadData(f"{dataset} has {sorted(given)}; {self.name} is distinguished by {sorted(wanted)}")

    def check_object(self, dataset: DatasetId, kept: object) -> None:
        """Raise BadData for an object, or a table's columns, that are not this type's."""
        if not isinstance(kept, self.pytype):
            raise BadData(f"{dataset} is a {type(kept).__name__}, not a {self.pytype.__name__}")
        if isinstance(kept, np.ndarray) and kept.dtype != self._dtype():
            raise BadData(f"{dataset} has other columns than {self.table}: {_differences(kept.dtype, self._dtype())}")

    def _dtype(self) -> np.dtype[np.void]:
        return REFCAT_DTYPE if self.table == "REFCAT_DTYPE" else dtype_of(self.table)


def _differences(given: np.dtype[np.void], wanted: np.dtype[np.void]) -> str:
    columns = {name: str(dtype[name]) for dtype in (given, wanted) for name in dtype.names or ()}
    differing = [name for name in columns if _column(given, name) != _column(wanted, name)]
    return ", ".join(f"{n} is {_column(given, n)}, not {_column(wanted, n)}" for n in differing[:5]) or "their order"


def _column(dtype: np.dtype[np.void], name: str) -> str:
    return str(dtype[name]) if name in (dtype.names or ()) else "absent"


_visit_kind = partial(Kind, dimensions=("instrument", "visit", "detector"), run="{instrument}/prompt/{day_obs}")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("raw", ("instrument", "exposure", "detector"), "PachonRaw", "{instrument}/raw/all", Raw),
        Kind(
            "calibration",
            ("instrument", "detector", "physical_filter"),
            "PachonCalibration",
            "{instrument}/calib/unbounded",
            Calibration,
            certified="{instrument}/calib",
        ),
        Kind(
            "template_patch",
            ("skymap", "tract", "patch", "band"),
            "PachonTemplate",
            "templates",
            Template,
            tagged="templates/made",
        ),
        Kind("reference_catalogue", ("skymap", "tract"), "ArrowNumpy", "refcats", np.ndarray, "REFCAT_DTYPE"),
        _visit_kind("dia_source", storage_class="ArrowNumpy", pytype=np.ndarray, table="DiaSource"),
        _visit_kind("visit_summary", storage_class="StructuredDataDict", pytype=dict),
    )
}
"""By name."""


def kind_of(dataset: DatasetId) -> Kind:
    """The kind of a dataset. Raises BadData if there is none, or other values than its dimensions are set."""
    if dataset.dataset_type not in KINDS:
        raise BadData(f"no dataset type {dataset.dataset_type!r} is kept (there are {', '.join(KINDS)})")
    kind = KINDS[dataset.dataset_type]
    kind.check_names(dataset)
    return kind
