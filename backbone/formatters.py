"""How the Data Butler reads and writes Pachon's files.

A repository's `butler.yaml` names these classes, so that whoever opens it with `lsst.daf.butler` alone needs
this package importable, and nothing else of it. Without it, `Butler.getURI` still tells where a file lies,
and astropy or pyarrow reads it: all are plain FITS and Parquet.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lsst.daf.butler import DatasetProvenance, FormatterV2
from lsst.daf.butler.formatters.parquet import ParquetFormatter, arrow_to_numpy, numpy_to_arrow
from lsst.resources import ResourcePath

from backbone.masked_fits import Cards, read_calibration, read_template, write_calibration, write_template
from backbone.product_fits import read_product, write_product
from backbone.raw_fits import read_raw, write_raw
from schemas.errors import BadData
from schemas.image import Calibration, Raw, Template
from schemas.tables import Table


class _FitsFormatter(FormatterV2):
    """Local FITS files, whose primary header says of what they were made."""

    default_extension = ".fits"
    can_read_from_local_file = True
    _provenance: DatasetProvenance | None = None

    def add_provenance(
        self,
        in_memory_dataset: Any,  # noqa: ANN401 - the base's
        /,
        *,
        provenance: DatasetProvenance | None = None,
    ) -> Any:  # noqa: ANN401 - the base's
        """Keep it until the file is written: the objects themselves carry none."""
        self._provenance = provenance
        return in_memory_dataset

    def _cards(self) -> Cards:
        if self._provenance is None:
            return {}
        flat = self._provenance.to_flat_dict(self.dataset_ref, prefix="LSST BUTLER", sep=" ", simple_types=True)
        return {key.upper(): str(value) for key, value in flat.items()}


class RawFormatter(_FitsFormatter):
    """`schemas.image.Raw`."""

    def read_from_local_file(self, path: str, *_: object, **__: object) -> Raw:
        """The raw, every pixel checked."""
        return read_raw(Path(path))

    def write_local_file(self, in_memory_dataset: Raw, uri: ResourcePath) -> None:
        """Write it, checksummed."""
        write_raw(Path(uri.ospath), in_memory_dataset)


class CalibrationFormatter(_FitsFormatter):
    """`schemas.image.Calibration`."""

    def read_from_local_file(self, path: str, *_: object, **__: object) -> Calibration:
        """The calibration, every plane checked."""
        return read_calibration(Path(path))

    def write_local_file(self, in_memory_dataset: Calibration, uri: ResourcePath) -> None:
        """Write it, checksummed."""
        write_calibration(Path(uri.ospath), in_memory_dataset, self._cards())


class ProductFormatter(_FitsFormatter):
    """Any frozen dataclass of arrays, numbers and tuples: the storage class says which."""

    def read_from_local_file(self, path: str, *_: object, **__: object) -> object:
        """The product, every array checked."""
        return read_product(Path(path), self.file_descriptor.storageClass.pytype)

    def write_local_file(self, in_memory_dataset: object, uri: ResourcePath) -> None:
        """Write it, checksummed."""
        write_product(Path(uri.ospath), in_memory_dataset, self._cards())


class TemplateFormatter(_FitsFormatter):
    """`schemas.image.Template`; the parameter `box` (`schemas.skymap.Box`, its pixels) reads a part."""

    unsupported_parameters = frozenset[str]()

    def read_from_local_file(self, path: str, *_: object, **__: object) -> Template:
        """The template, or its part in `box`."""
        return read_template(Path(path), (self.file_descriptor.parameters or {}).get("box"))

    def write_local_file(self, in_memory_dataset: Template, uri: ResourcePath) -> None:
        """Write it, checksummed."""
        write_template(Path(uri.ospath), in_memory_dataset, self._cards())


class TableFormatter(ParquetFormatter):
    """Structured arrays as Parquet, each page with its checksum, which the base does not write."""

    can_read_from_uri = False

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:  # noqa: ANN401 - the base's
        """The table, every page checked, or what the base reads of it by component or parameter."""
        if component is not None or self.file_descriptor.parameters:
            return super().read_from_local_file(path, component, expected_size)
        try:
            table = arrow_to_numpy(pq.read_table(path, use_threads=False, page_checksum_verification=True))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise BadData(f"{path}: {error}") from error
        return table.view(np.dtype(table.dtype.descr), np.ndarray)  # it comes as a recarray

    def write_local_file(self, in_memory_dataset: Table, uri: ResourcePath) -> None:
        """Write it, checksummed."""
        pq.write_table(numpy_to_arrow(in_memory_dataset), uri.ospath, write_page_checksum=True)
