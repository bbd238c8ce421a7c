"""The archive of files: a Data Butler repository, its registry in SQLite, for raws and all that is made of them.

Several processes may write at once, each with its own `ButlerArchive`; one object is for one thread at a time. What a
process leaves when it dies is a temporary file at most: a file takes its name by a rename, and counts once the
registry's transaction is through.

Whoever has only `lsst.daf.butler` opens the folder as any repository, its collection `<instrument>/defaults`; to load
objects, and not only find files, they need the packages `backbone` and `schemas` importable.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Self, TypeVar

from backbone.butler_errors import NotKept, is_locked, told_as_ours
from backbone.dataset_types import KINDS, kind_of
from backbone.raw_fits import verify_raw, write_raw
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

LOCK_DEADLINE_S = 30.0
"""How long a write waits for those of other processes before it is Transient."""

_Result = TypeVar("_Result")


class ButlerArchive:
    """Datasets by `DatasetId`, in a folder. What a name refers to (`register_camera`) must be known before `put`."""

    def __init__(self, repository: "Repository", folder: Path) -> None:
        self._repository = repository
        self._folder = folder
        self._exposures: set[int] = set()
        self._tracts: set[int] = set()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """The archive in `folder`, made if there is none."""
        from backbone.butler_repository import Repository  # noqa: PLC0415 - 1.8 s, for those who open an archive

        if not (folder / "butler.yaml").exists():
            with told_as_ours(f"archive {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
                Repository.make(folder)
        archive = cls.open(folder)
        archive._write(f"archive {folder}", archive._repository.register_dataset_types)
        return archive

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The archive in `folder`. Raises BadData if there is none."""
        from backbone.butler_repository import Repository  # noqa: PLC0415 - 1.8 s, for those who open an archive

        if not (folder / "butler.yaml").exists():
            raise BadData(f"there is no archive in {folder}")
        with told_as_ours(f"archive {folder}"):
            return cls(Repository.open(folder), folder)

    def register_camera(self, camera: Camera) -> None:
        """Make an instrument, its detectors and filters known."""
        self._write(camera.name, lambda: self._repository.register_camera(camera))

    def register_exposure(self, observation: Observation) -> None:
        """Make an exposure, its visit, and the sky that each detector covers known."""
        seen = observation
        if seen.exposure not in self._exposures:
            camera = instrument.camera(seen.instrument)
            self._write(seen.image_name, lambda: self._repository.register_exposure(camera, seen))
            self._exposures.add(seen.exposure)

    def register_tracts(self, tracts: Sequence[Tract]) -> None:
        """Make tracts and their patches known; `put` does so for the tract of what it is given."""
        new = [tract for tract in tracts if tract.id not in self._tracts]
        if new:
            self._write(f"tracts {[tract.id for tract in new]}", lambda: self._repository.register_tracts(new))
            self._tracts.update(tract.id for tract in new)

    def put_raw(self, raw: Raw) -> tuple[str, str]:
        """Keep a raw, checked after it was written: its URI and SHA-256. The same raw again changes nothing.

        It registers the exposure. The file is written before the registry is locked: other writers wait
        for a rename only. Raises BadData for pixels that do not fit their detector or SHA-256, and for others than
        those kept already; Transient for a full disk or a registry that stays locked.
        """
        seen = raw.observation
        dataset = DatasetId(
            dataset_type="raw", instrument=seen.instrument, exposure=seen.exposure, detector=raw.detector
        )
        self.register_exposure(seen)
        if not self.exists(dataset):
            with self._incoming(dataset) as path:
                write_raw(path, raw)
                _to_disk(path)
                verify_raw(path)
                if self._write(str(dataset), lambda: self._repository.ingest(dataset, path)):
                    return self.uri(dataset), raw.sha256
        uri = self.uri(dataset)
        kept = verify_raw(_path_of(uri))
        if kept != raw.sha256:
            raise BadData(f"{dataset} is kept already, with SHA-256 {kept} and not {raw.sha256}")
        return uri, kept

    def put(self, dataset: DatasetId, kept: object, inputs: Sequence[DatasetId] = ()) -> str:
        """Keep an object; its URI. The same again changes nothing. `inputs`: the kept datasets it was made of.

        Raises BadData for another object than the one kept already, for one that is not this type's, and for a name
        whose camera or exposure is not registered; Transient for a full disk or a registry that stays locked.
        """
        kind_of(dataset).check_object(dataset, kept)
        if isinstance(kept, Raw):
            return self.put_raw(kept)[0]
        if dataset.tract is not None:
            self.register_tracts([skymap.tract(dataset.tract)])
        new = self._write(f"{dataset} to {self._folder}", lambda: self._repository.put(dataset, kept, inputs))
        if not new and not same(self.get(dataset), kept):
            raise BadData(f"{dataset} is kept already, with other content")
        return self.uri(dataset)

    def get(self, dataset: DatasetId, box: Box | None = None) -> Any:  # noqa: ANN401 - the dataset type says what
        """The object kept under a name, checked; of a template, what `box` (its pixels) cuts out, not checked.

        Raises NotKept if there is none, BadData naming it if its file is gone or damaged.
        """
        ref = self._ref(dataset)
        with told_as_ours(str(dataset)):
            return self._repository.get(ref, {} if box is None else {"box": box})

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
        """What is kept of a type, by the values of any Butler dimensions (`exposure=...`, `day_obs=...`), in order."""
        if dataset_type not in KINDS:
            raise BadData(f"no dataset type {dataset_type!r} is kept (there are {', '.join(KINDS)})")
        with told_as_ours(f"{dataset_type} with {where}"):
            found = self._repository.query(KINDS[dataset_type], where)
        return sorted(found, key=lambda dataset: [str(value) for value in dataset.data_id().values()])

    def _ref(self, dataset: DatasetId) -> "DatasetRef":
        with told_as_ours(str(dataset)):
            ref = self._repository.find(dataset)
        if ref is None:
            raise NotKept(f"{dataset} is not in the archive {self._folder}")
        return ref

    def _write(self, what: str, deed: Callable[[], _Result]) -> _Result:
        """Do what writes to the registry, again while others hold it (each try waits 5 s in SQLite), to a deadline."""
        deadline = time.monotonic() + LOCK_DEADLINE_S
        with told_as_ours(what):
            while True:
                try:
                    return deed()
                except Exception as error:
                    if not is_locked(error) or time.monotonic() > deadline:
                        raise

    @contextmanager
    def _incoming(self, dataset: DatasetId) -> Iterator[Path]:
        """A temporary file on the archive's disk, gone at the end unless it was moved."""
        folder = self._folder / "incoming"
        with told_as_ours(f"{dataset} to {self._folder}"):
            folder.mkdir(exist_ok=True)
            with NamedTemporaryFile(dir=folder, suffix=".fits", delete=False) as file:
                path = Path(file.name)
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until the file's bytes are on the disk, so that no power cut undoes what `RawArchived` says."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))
