"""The report of a data release: its tables, patch by patch, from the Data Butler, held to the truth if there is one."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from lsst.daf.butler import Butler, DatasetRef, MissingCollectionError, MissingDatasetTypeError

from access.release.examine import examine, joined
from access.release.given import POSITION_DTYPE, REFERENCE_DTYPE, Frame, Frames, PatchTables, Reference
from access.release.model import Missing, Summary
from access.release.write import report, write
from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept, told_as_ours
from backbone.sky_products import refcat_for
from payloads.drp.relative import RelativeCalibration
from payloads.imaging.calibrate import at_epoch
from payloads.imaging.stars import StarFlag
from schemas import drp_tables
from schemas.clock import tai_from_mjd
from schemas.errors import BadData
from schemas.tables import Table
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind

_BAD_STAR = StarFlag.MASKED | StarFlag.CROWDED | StarFlag.NOT_STELLAR | StarFlag.UNMEASURED


def write_report(
    butler: Path,
    collections: Sequence[str],
    output: Path,
    *,
    name: str,
    reference: Reference | None,
    missing: Sequence[Missing] = (),
) -> Summary:
    """Write `summary.json` and `release.html` of the release in some collections into a folder; what they say.

    `reference`: `truth_of` a simulated sky, `catalogue_of` a real one. `missing`: what could not be made. Raises
    BadData if there is no object table in the collections, and for a table that lacks columns.
    """
    with Butler.from_config(str(butler)) as opened:
        release = _Release(opened, collections)
        parts = [examine(patch, reference) for patch in release.patches()]
    if not parts:
        raise BadData(f"{butler}: no object table in {', '.join(collections)}")
    shown = report(name, joined(parts), release.frames, reference, [*missing, *release.excluded])
    output.mkdir(parents=True, exist_ok=True)
    write(shown, output)
    return shown.summary


def truth_of(seed: int) -> Reference:
    """The simulated sky of a seed."""
    sky, kinds = Sky(seed), np.array([kind.name.lower() for kind in Kind])

    def sources(ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> Table:
        table = sky.sources(ra, dec, radius_deg, band, mjd_tai)
        table = table[table["kind"] != Kind.ASTEROID]
        rows = np.zeros(len(table), REFERENCE_DTYPE)
        for column in ("id", "ra", "dec", "flux"):
            rows[column] = table[column]
        rows["kind"], rows["mean_flux"] = kinds[table["kind"]], table["template_flux"]
        return rows

    return Reference("simulator's truth", complete=True, sources=sources)


def catalogue_of(butler: Path) -> Reference:
    """The reference catalogue in a Data Butler: of stars, and not of all."""
    archive = ButlerArchive.open(butler)

    def sources(ra: float, dec: float, radius_deg: float, band: str, mjd_tai: float) -> Table:
        try:
            stars = refcat_for(archive, ra, dec, radius_deg)
        except NotKept:
            return np.zeros(0, REFERENCE_DTYPE)
        rows = np.zeros(len(stars), REFERENCE_DTYPE)
        rows["id"], rows["kind"] = stars["id"], np.where(stars["variable"], "variable", "star")
        rows["ra"], rows["dec"] = at_epoch(stars, tai_from_mjd(mjd_tai))
        rows["flux"] = rows["mean_flux"] = np.nan_to_num(stars[f"{band}_flux"])
        return rows

    return Reference("reference catalogue", complete=False, sources=sources)


class _Release:
    """The tables of a release. `frames`: those that calibration kept in any tract; `excluded`: where it did not."""

    def __init__(self, butler: Butler, collections: Sequence[str]) -> None:
        self._butler, self._collections = butler, tuple(collections)
        self._calibrations: dict[tuple[int, str], RelativeCalibration] = {
            (int(ref.dataId["tract"]), str(ref.dataId["band"])): self._get(ref)
            for ref in self._refs("relative_calibration")
        }
        self._kept = {(tract, *ccd) for (tract, _), each in self._calibrations.items() for ccd in _ccds(each)}
        self._out = {
            (tract, each.visit, each.detector): each.why
            for (tract, _), calibration in self._calibrations.items()
            for each in calibration.excluded
        }
        summaries: list[Frame] = [self._get(ref) for ref in self._refs("visit_detector_summary")]
        nowhere = {key[1:] for key in self._out} - {key[1:] for key in self._kept}
        self.frames = [frame for frame in summaries if (frame.visit, frame.detector) not in nowhere]
        self.excluded = [
            Missing(step="relative_calibration", data_id=f"tract {tract} visit {visit} detector {detector}", why=why)
            for (tract, visit, detector), why in sorted(self._out.items())
        ]
        self._stars = {self._ccd(ref): ref for ref in self._refs("single_visit_star")}
        self._seen = lru_cache(maxsize=4096)(self._positions_of)

    def patches(self) -> Iterator[PatchTables]:
        """Patch by patch, in their order."""
        forced, curves = (
            {self._patch(ref): ref for ref in self._refs(kind)}
            for kind in ("object_forced_source", "object_light_curve")
        )
        frames = Frames(self.frames)
        for ref in sorted(self._refs("object"), key=self._patch):
            tract, patch = key = self._patch(ref)
            near = [each for each in frames.near(tract, patch) if (tract, each.visit, each.detector) not in self._out]
            light_curves = self._table(curves.get(key), drp_tables.light_curve_dtype())
            yield PatchTables(
                tract=tract, patch=patch, objects=self._table(ref, drp_tables.object_dtype()),
                forced=self._table(forced.get(key), drp_tables.forced_source_dtype()),
                positions=self._positions(tract, near), n_light_curves=len(light_curves), frames=near,
            )  # fmt: skip

    def _positions(self, tract: int, frames: Sequence[Frame]) -> Table:
        """POSITION_DTYPE rows of the stars of frames, by the tract's astrometry."""
        tables = [self._seen(tract, frame.band, frame.visit, frame.detector) for frame in frames]
        return np.concatenate([np.zeros(0, POSITION_DTYPE), *tables])

    def _positions_of(self, tract: int, band: str, visit: int, detector: int) -> Table:
        calibration, ref = self._calibrations.get((tract, band)), self._stars.get((visit, detector))
        if calibration is None or ref is None or (tract, visit, detector) not in self._kept:
            return np.zeros(0, POSITION_DTYPE)
        stars = self._get(ref)
        stars = stars[(stars["flags"] & _BAD_STAR == 0) & (stars["flux_err"] > 0.0)]
        rows = np.zeros(len(stars), POSITION_DTYPE)
        rows["visit"], rows["snr"] = visit, stars["flux"] / stars["flux_err"]
        rows["ra"], rows["dec"] = calibration.wcs_of(visit, detector).pixel_to_sky(stars["x"], stars["y"])
        return rows

    def _table(self, ref: DatasetRef | None, dtype: np.dtype[np.void]) -> Table:
        """A table as an array, empty for none."""
        if ref is None:
            return np.zeros(0, dtype)
        table: Table = np.ma.filled(self._get(ref).as_array())
        lacking = set(dtype.names or ()) - set(table.dtype.names or ())
        if lacking:
            raise BadData(f"{ref} lacks the columns {', '.join(sorted(lacking))}")
        return table

    def _get(self, ref: DatasetRef) -> Any:  # noqa: ANN401 - by dataset type
        with told_as_ours(str(ref)):
            return self._butler.get(ref)

    def _refs(self, kind: str) -> list[DatasetRef]:
        """The release's datasets of a type; none of a type that is not known."""
        try:
            return self._butler.query_datasets(kind, self._collections, limit=None, explain=False)
        except MissingDatasetTypeError:
            return []
        except MissingCollectionError as error:
            raise BadData(f"no collection {', '.join(self._collections)}: {error}") from error

    @staticmethod
    def _patch(ref: DatasetRef) -> tuple[int, int]:
        return int(ref.dataId["tract"]), int(ref.dataId["patch"])

    @staticmethod
    def _ccd(ref: DatasetRef) -> tuple[int, int]:
        return int(ref.dataId["visit"]), int(ref.dataId["detector"])


def _ccds(calibration: RelativeCalibration) -> Iterator[tuple[int, int]]:
    """Visit and detector of each frame that it has."""
    return zip(calibration.visit.tolist(), calibration.detector.tolist(), strict=True)
