"""The archive of files, a Data Butler repository with its registry in SQLite: raws and what is made of them.

Several processes may write at once, each with its own `ButlerArchive`; one object is for one thread at a
time. What a process leaves when it dies is a temporary file at most: a file takes its name by a rename, and
counts once the registry's transaction is through.

Whoever has only `lsst.daf.butler` opens the folder as any repository, its collection `<instrument>/defaults`;
to load objects, and not only find files, they need the packages `backbone` and `schemas` importable.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

from backbone.butler_errors import NotKept, told_as_ours
from backbone.dataset_types import KINDS, kind_of
from backbone.raw_fits import read_observation, verify_raw, write_raw
from backbone.sameness import same
from schemas import instrument, skymap
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import Observation, Raw
from schemas.instrument import Camera
from schemas.skymap import Box, Tract

if TYPE_CHECKING:
    from lsst.daf.butler import DatasetRef

    from backbone.butler_repository import Repository


class ButlerArchive:
    """Datasets by `DatasetId`, in a folder. A camera is made known (`register_camera`) before its data."""

    def __init__(self, repository: "Repository", folder: Path) -> None:
        self._repository = repository
        self._folder = folder
        self._exposures: set[int] = set()
        self._tracts: set[int] = set()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """The archive in `folder`, made if there is none."""
        from backbone.butler_repository import Repository  # noqa: PLC0415 - takes 1.8 s

        with told_as_ours(f"archive {folder}"):
            if not (folder / "butler.yaml").exists():
                folder.mkdir(parents=True, exist_ok=True)
                Repository.make(folder)
            repository = Repository.open(folder)
            repository.register_dataset_types()  # always: whoever made it may have died before
        return cls(repository, folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The archive in `folder`. Raises BadData if there is none."""
        from backbone.butler_repository import Repository  # noqa: PLC0415 - takes 1.8 s

        if not (folder / "butler.yaml").exists():
            raise BadData(f"there is no archive in {folder}")
        with told_as_ours(f"archive {folder}"):
            return cls(Repository.open(folder), folder)

    def register_camera(self, camera: Camera) -> None:
        """Make an instrument, its detectors and filters known."""
        with told_as_ours(camera.name):
            self._repository.register_camera(camera)

    def register_exposure(self, observation: Observation) -> None:
        """Make an exposure, its visit, and the sky that each detector covers known."""
        if observation.exposure in self._exposures:
            return
        camera = instrument.camera(observation.instrument)
        with told_as_ours(observation.image_name):
            self._repository.register_exposure(camera, observation)
        self._exposures.add(observation.exposure)

    def register_tracts(self, tracts: Sequence[Tract]) -> None:
        """Make tracts and their patches known; `put` does so for the tract of what it is given."""
        new = [tract for tract in tracts if tract.id not in self._tracts]
        if not new:
            return
        with told_as_ours(f"tracts {[tract.id for tract in new]}"):
            self._repository.register_tracts(new)
        self._tracts.update(tract.id for tract in new)

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        """Keep a raw, checked after it was written: its URI and SHA-256. The same raw again changes nothing.

        It registers the exposure. The file is written before the registry is locked: other writers wait
        for a rename only. Raises BadData for pixels that do not fit their detector or SHA-256, and for others
        than those kept already; Transient for a full disk or a registry that stays locked.
        """
        dataset = _id_of(raw)
        self.register_exposure(raw.observation)
        if not self.exists(dataset) and self._write_raw(dataset, raw):
            return self.uri(dataset), raw.sha256
        uri = self.uri(dataset)
        with told_as_ours(str(dataset)):
            kept = verify_raw(_path_of(uri))
        if kept != raw.sha256:
            raise BadData(f"{dataset} is kept already, with SHA-256 {kept} and not {raw.sha256}")
        return uri, kept

    def put(self, dataset: DatasetId, kept: object, inputs: Sequence[DatasetId] = ()) -> str:
        """Keep an object; its URI. The same again changes nothing. `inputs`: kept datasets it was made of.

        Raises BadData for another object than the one kept already, for one that is not this type's, and for
        a name whose camera or exposure is not registered; Transient for a full disk or a registry that stays
        locked.
        """
        kind_of(dataset).check_object(dataset, kept)
        if isinstance(kept, Raw):
            if dataset != _id_of(kept):
                raise BadData(f"{dataset} is another raw than {_id_of(kept)}")
            return self.put_raw(kept)[0]
        if dataset.tract is not None:
            self.register_tracts([skymap.tract(dataset.tract)])
        with told_as_ours(f"{dataset} to {self._folder}"):
            new = self._repository.put(dataset, kept, inputs)
        if not new and not same(self.get(dataset), kept):
            raise BadData(f"{dataset} is kept already, with other content")
        return self.uri(dataset)

    def get(self, dataset: DatasetId, box: Box | None = None) -> Any:  # noqa: ANN401 - by dataset type
        """The object of a name, checked; of a template, what `box` (its pixels) cuts out, not checked.

        Raises NotKept if there is none, BadData naming it if its file is gone or damaged.
        """
        ref = self._ref(dataset)
        with told_as_ours(str(dataset)):
            return self._repository.get(ref, {} if box is None else {"box": box})

    def get_certified(self, dataset: DatasetId, time: float) -> Any:  # noqa: ANN401 - by dataset type
        """The object that holds at a time (TAI s): the one certified for it, else the one that holds unbounded.

        Raises as `get` does.
        """
        with told_as_ours(str(dataset)):
            ref = self._repository.find_certified(dataset, time)
            if ref is None:
                raise NotKept(f"{dataset} is not in the archive {self._folder}")
            return self._repository.get(ref, {})

    def certify(self, run: str, dataset_type: str, begin: float | None, end: float | None) -> int:
        """Have the datasets of a type in a RUN collection hold from one time to another; how many there are.

        Times TAI s, None: for ever. What held in that time before holds no more in it. Raises BadData for a type that
        is never certified, and for a collection that is not there or has none of the type.
        """
        if dataset_type not in KINDS or not KINDS[dataset_type].certified:
            raise BadData(f"a {dataset_type} is not certified for a time")
        with told_as_ours(run):
            number = self._repository.certify(run, dataset_type, begin, end)
        if not number:
            raise BadData(f"{run} has no {dataset_type}")
        return number

    def use_templates(self, runs: str) -> int:
        """Have the templates of RUN collections (a name or glob) be those that prompt processing takes; how many.

        Of several for a patch and band the last run's, by name. Those there were before are kept, and found no more.
        Raises BadData if there are none.
        """
        with told_as_ours(runs):
            number = self._repository.tag(runs, "template_patch")
        if not number:
            raise BadData(f"{runs} has no template_patch")
        return number

    def observation_of(self, raw: DatasetId) -> Observation:
        """The observation of a raw, from its file's header. Raises as `get` does."""
        uri = self.uri(raw)
        with told_as_ours(str(raw)):
            return read_observation(_path_of(uri))

    def exists(self, dataset: DatasetId) -> bool:
        """Whether an object is kept under a name."""
        with told_as_ours(str(dataset)):
            return self._repository.find(dataset) is not None

    def uri(self, dataset: DatasetId) -> str:
        """Where the file of a dataset lies. Raises NotKept if there is none."""
        ref = self._ref(dataset)
        with told_as_ours(str(dataset)):
            return self._repository.uri(ref)

    def query(self, dataset_type: str, **where: int | str) -> list[DatasetId]:
        """What is kept of a type, by values of Butler dimensions (`exposure=`, `day_obs=` ...), in order."""
        if dataset_type not in KINDS:
            raise BadData(f"no dataset type {dataset_type!r} is kept (there are {', '.join(KINDS)})")
        with told_as_ours(f"{dataset_type} with {where}"):
            found = self._repository.query(KINDS[dataset_type], where)
        return sorted(found, key=lambda dataset: tuple(dataset.data_id().values()))

    def _ref(self, dataset: DatasetId) -> "DatasetRef":
        with told_as_ours(str(dataset)):
            ref = self._repository.find(dataset)
        if ref is None:
            raise NotKept(f"{dataset} is not in the archive {self._folder}")
        return ref

    def _write_raw(self, dataset: DatasetId, raw: Raw) -> bool:
        """Write, check and take in a raw's file; False if another process was first."""
        with told_as_ours(f"{dataset} to {self._folder}"), self._incoming() as path:
            write_raw(path, raw)
            _to_disk(path)
            verify_raw(path)
            return self._repository.ingest(dataset, path)

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A temporary file on the archive's disk, gone at the end unless it was moved."""
        folder = self._folder / "incoming"
        folder.mkdir(exist_ok=True)
        with NamedTemporaryFile(dir=folder, suffix=".fits", delete=False) as file:
            path = Path(file.name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _id_of(raw: Raw) -> DatasetId:
    seen = raw.observation
    return DatasetId.of_raw(seen.instrument, seen.exposure, raw.detector)


def _to_disk(path: Path) -> None:
    """Wait until the file's bytes are on the disk, so that no power cut undoes what `RawArchived` says."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _path_of(uri: str) -> Path:
    return Path(url2pathname(urlsplit(uri).path))
