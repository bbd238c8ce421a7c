"""The Data Butler's calls that an archive needs, each one step; imports `lsst.daf.butler` (1.8 s).

It raises what the Data Butler raises; retries and errors as policy are `backbone.butler`'s.
"""

import sqlite3
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

from lsst.daf.butler import (  # type: ignore[attr-defined] # CollectionType is not in its __all__
    Butler,
    CollectionType,
    Config,
    DataIdValueError,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
    FileDataset,
    InvalidQueryError,
    MissingCollectionError,
    Timespan,
)
from sqlalchemy import event
from sqlalchemy.pool import Pool

from backbone import dimension_records
from backbone.dataset_types import KINDS, Kind, kind_of
from schemas import skymap
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import Observation
from schemas.instrument import Camera
from schemas.skymap import Tract

LOCK_DEADLINE_S = 30.0
"""How long a call waits for the registry, which other processes' writes lock."""

_NAMES = frozenset(DatasetId.model_fields) - {"dataset_type"}


@event.listens_for(Pool, "checkout")
def _wait_no_longer(connection: object, *_: object) -> None:
    """Tell SQLite the deadline: the Data Butler lets it wait 300 s, and has no setting for that."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute(f"PRAGMA busy_timeout = {int(LOCK_DEADLINE_S * 1000)}")


class Repository:
    """A Data Butler repository, writable."""

    def __init__(self, butler: Butler) -> None:
        self._butler = butler

    @staticmethod
    def make(folder: Path) -> None:
        """Make a repository, with Pachon's storage classes and formatters."""
        text = resources.files("backbone").joinpath("butler_repo.yaml").read_text(encoding="utf-8")
        Butler.makeRepo(str(folder), config=Config.fromString(text))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The repository in a folder."""
        return cls(Butler.from_config(str(folder), writeable=True))

    def register_dataset_types(self) -> None:
        """Make all of `KINDS` known, and where some of them are tagged."""
        universe = self._butler.dimensions
        for kind in KINDS.values():
            dataset_type = DatasetType(
                kind.name, kind.dimensions, kind.storage_class, universe=universe, isCalibration=bool(kind.certified)
            )
            self._butler.registry.registerDatasetType(dataset_type)
            if kind.tagged:
                self._butler.collections.register(kind.tagged, CollectionType.TAGGED)

    def register_camera(self, camera: Camera) -> None:
        """Records of an instrument, and `<instrument>/defaults`, which chains the collections that last."""
        dimension_records.insert_camera(self._butler, camera)
        lasting = [kind.run.format(instrument=camera.name) for kind in KINDS.values() if not kind.by_night]
        for run in lasting:
            self._butler.collections.register(run)
        certified = [kind.certified.format(instrument=camera.name) for kind in KINDS.values() if kind.certified]
        for collection in certified:
            self._butler.collections.register(collection, CollectionType.CALIBRATION)
        tagged = [kind.tagged for kind in KINDS.values() if kind.tagged]
        chain = f"{camera.name}/defaults"
        self._butler.collections.register(chain, CollectionType.CHAINED)
        self._butler.collections.redefine_chain(chain, [*certified, *tagged, *lasting])

    def register_exposure(self, camera: Camera, observation: Observation) -> None:
        """Records of an exposure and its visit, in one transaction."""
        with self._butler.transaction():
            dimension_records.insert_exposure(self._butler, camera, observation)

    def register_tracts(self, tracts: Sequence[Tract]) -> None:
        """Records of tracts and their patches, in one transaction."""
        with self._butler.transaction():
            dimension_records.insert_tracts(self._butler, tracts)

    def find(self, dataset: DatasetId) -> DatasetRef | None:
        """The Butler's reference to a dataset; None if there is none, or its id refers to nothing known."""
        kind = kind_of(dataset)
        return self._find(dataset, [*filter(None, [kind.tagged]), kind.run_of(dataset)])

    def find_certified(self, dataset: DatasetId, time: float) -> DatasetRef | None:
        """As `find`, of what holds at a time (TAI s): what is certified for it, else what holds unbounded."""
        kind = kind_of(dataset)
        collections = [kind.certified.format(instrument=dataset.instrument), kind.run_of(dataset)]
        return self._find(dataset, collections, Timespan.fromInstant(dimension_records.tai(time)))

    def certify(self, run: str, dataset_type: str, begin: float | None, end: float | None) -> int:
        """Certify the datasets of a type in a RUN collection from one time to another (TAI s; None: for ever).

        What was certified for that time before holds no more. Returns how many there are.
        """
        refs = self._butler.query_datasets(dataset_type, run, limit=None, explain=False)
        first, last = (None if time is None else dimension_records.tai(time) for time in (begin, end))
        span = Timespan(first, last)
        with self._butler.transaction():
            for collection in {KINDS[dataset_type].certified.format(**_instrument(ref)) for ref in refs}:
                ours = [ref for ref in refs if KINDS[dataset_type].certified.format(**_instrument(ref)) == collection]
                self._decertify(collection, ours, span)
                self._butler.registry.certify(collection, ours, span)
        return len(refs)

    def tag(self, runs: str, dataset_type: str) -> int:
        """Have the datasets of a type in RUN collections go before what there was; how many there are.

        `runs`: a name or a glob; of several datasets of a data id that of the last run, by name.
        """
        names = sorted(self._butler.collections.query(runs, CollectionType.RUN), reverse=True)
        if not names:
            return 0
        refs = self._butler.query_datasets(dataset_type, names, find_first=True, limit=None, explain=False)
        collection = KINDS[dataset_type].tagged
        with self._butler.transaction():
            before = (self._butler.find_dataset(dataset_type, ref.dataId, collections=[collection]) for ref in refs)
            self._butler.registry.disassociate(collection, [ref for ref in before if ref is not None])
            self._butler.registry.associate(collection, refs)
        return len(refs)

    def _decertify(self, collection: str, refs: Sequence[DatasetRef], span: Timespan) -> None:
        """Shorten what holds in a time for data ids; the Data Butler asserts that there was something of the type."""
        name = refs[0].datasetType.name
        held = self._butler.collections.get_info(collection, include_summary=True).dataset_types
        if name in (held or ()):
            self._butler.registry.decertify(collection, name, span, dataIds=[ref.dataId for ref in refs])

    def _find(self, dataset: DatasetId, collections: Sequence[str], span: Timespan | None = None) -> DatasetRef | None:
        kind = kind_of(dataset)
        try:
            return self._butler.find_dataset(kind.name, _data_id(kind, dataset), collections=collections, timespan=span)
        except DataIdValueError:
            return None
        except MissingCollectionError:  # one that repositories made earlier have not, or nothing was put there yet
            return self._find(dataset, collections[1:], span) if len(collections) > 1 else None

    def ingest(self, dataset: DatasetId, path: Path) -> bool:
        """Take a file in, by a rename, as that of a dataset; False, and it is left, if there is one already.

        The look and the deed are one transaction, which in SQLite shuts all other writers out.
        """
        kind = kind_of(dataset)
        self._butler.collections.register(kind.run_of(dataset))
        with self._butler.transaction():
            if self.find(dataset) is not None:
                return False
            ref = DatasetRef(
                self._butler.get_dataset_type(kind.name),
                self._butler.registry.expandDataId(_data_id(kind, dataset)),
                run=kind.run_of(dataset),
            )
            self._butler.ingest(FileDataset(str(path), [ref]), transfer="move")
        return True

    def put(self, dataset: DatasetId, kept: object, inputs: Sequence[DatasetId]) -> bool:
        """Write an object, and in its file what it was made of; False if there is one already."""
        kind = kind_of(dataset)
        self._butler.collections.register(kind.run_of(dataset))
        with self._butler.transaction():
            if self.find(dataset) is not None:
                return False
            provenance = self._provenance(inputs) if inputs else None
            self._butler.put(kept, kind.name, _data_id(kind, dataset), run=kind.run_of(dataset), provenance=provenance)
        return True

    def get(self, ref: DatasetRef, parameters: dict[str, object]) -> Any:  # noqa: ANN401 - by dataset type
        """The object."""
        return self._butler.get(ref, parameters=parameters)

    def uri(self, ref: DatasetRef) -> str:
        """Where its file lies."""
        return str(self._butler.getURI(ref))

    def query(self, kind: Kind, where: dict[str, int | str]) -> list[DatasetId]:
        """Datasets of a kind by values of dimensions. Raises BadData for values that alone name nothing."""
        runs = list(self._butler.collections.query(kind.runs_pattern))
        if not runs:
            return []
        data_id = where | ({"skymap": skymap.NAME} if kind.on_skymap else {})
        try:
            refs = self._butler.query_datasets(kind.name, runs, data_id=data_id, limit=None, explain=False)
        except InvalidQueryError as error:
            raise BadData(str(error)) from error
        return [_dataset_id(ref) for ref in refs]

    def _provenance(self, inputs: Sequence[DatasetId]) -> DatasetProvenance:
        provenance = DatasetProvenance()
        for dataset in inputs:
            ref = self.find(dataset)
            if ref is None:
                raise LookupError(f"its input {dataset} is not kept")
            provenance.add_input(ref)
        return provenance


def _instrument(ref: DatasetRef) -> dict[str, object]:
    return {"instrument": ref.dataId["instrument"]}


def _data_id(kind: Kind, dataset: DatasetId) -> dict[str, int | str]:
    return dataset.data_id() | ({"skymap": skymap.NAME} if kind.on_skymap else {})


def _dataset_id(ref: DatasetRef) -> DatasetId:
    values = {name: value for name, value in ref.dataId.required.items() if name in _NAMES}
    return DatasetId(dataset_type=ref.datasetType.name, **values)
