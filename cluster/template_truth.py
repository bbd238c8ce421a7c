"""What varies, against templates made of visits: they have it as it was in those that each pixel is the mean of.

The camera tells the truth about a visit against the simulator's own templates. Where prompt processing has others, the
same sky is looked at once more, at the times of their visits.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from lsst.daf.butler import Butler
from lsst.resources import ResourcePath
from numpy.typing import NDArray

from access.report.truth_check import Columns, Floats
from backbone.butler import ButlerArchive
from backbone.butler_errors import NotKept
from backbone.masked_fits import inputs_of_template
from backbone.sky_products import of_one_psf
from cluster.settings import Settings
from schemas.identity import DatasetId
from schemas.image import Image, Inputs, Psf
from schemas.skymap import PATCH_PIXELS, TRACT_PATCHES, Box, Tract, tract_at
from schemas.tables import Table
from simulators.ocs.schedule import PlannedVisit
from simulators.sky.sky import Sky
from simulators.sky.sources import Kind

Ints = NDArray[np.int64]

KEPT_PATCHES = 64
"""In memory at once: 2 MB each for every 16 visits."""
_CORNER = Box(0, 0, 2, 2)
"""Pixels enough to be told a patch's PSF."""
_GRID_DEG, _RADIUS_DEG = 0.2, 0.35
"""The sky is asked for about the points of a grid: for what lies within a CCD's reach of them."""


class TemplateTruth:
    """Of the visits of a night's plan, with the templates in its folder. `seed`: of its sky."""

    def __init__(self, settings: Settings, plan: Sequence[PlannedVisit], seed: int) -> None:
        self._butler, self._instrument = settings.butler, settings.instrument
        self._archive, self._sky = ButlerArchive.open(settings.butler), Sky(seed)
        known = settings.camera.filters
        self._bands = {v.observation(0).visit: known[v.physical_filter] for v in plan if v.physical_filter in known}
        self._kept = lru_cache(maxsize=KEPT_PATCHES)(self._kept_of)
        self._fluxes_at = lru_cache(maxsize=256)(self._fluxes)
        self._midpoint = lru_cache(maxsize=None)(self._midpoint_of)

    def __call__(self, truth: Columns, visit: int) -> Columns:
        """The truth of a visit's detector, with the templates there are: `template_flux`, `difference_flux`, `snr`.

        Not `usable` is what no visit of a template saw, and what lies on patches that are not there or, by their PSF,
        not taken (`backbone.sky_products.of_one_psf`; a detector's pixels on each are counted by its sources).
        """
        if visit not in self._bands or not len(truth["id"]):
            return truth
        place, band = (float(np.median(truth["ra"])), float(np.median(truth["dec"]))), self._bands[visit]
        tract, template = tract_at(*place), truth["template_flux"].astype(float)
        seen: list[tuple[Psf, Ints]] = []
        for patch, rows, x, y in _by_patch(truth, tract):
            psf, inputs = self._kept(tract.id, patch, band)
            told = np.ones(len(rows), bool)
            if inputs:
                weight = inputs.at(x, y)
                template[rows] = _mean(self._seen(truth["id"][rows], place, band, inputs.visits), weight)
                told[:] = weight.any(0)
            if psf:
                seen.append((psf, rows[told]))
        return against(truth | {"usable": truth["usable"].astype(bool) & _shown(seen, len(template))}, template)

    def _seen(self, ids: Ints, place: tuple[float, float], band: str, visits: Sequence[int]) -> Floats:
        """(visits, n), nJy: of each source in the visits; 0 in those where it was not there."""
        ra, dec = (round(angle / _GRID_DEG) * _GRID_DEG for angle in place)
        seen = (self._fluxes_at(ra, dec, band, self._midpoint(visit)) for visit in visits)
        return np.array([_looked_up(each, ids) for each in seen])

    def _fluxes(self, ra: float, dec: float, band: str, mjd: float) -> Table:
        """What stays in its place, by id."""
        found = self._sky.sources(ra, float(np.clip(dec, -90.0, 90.0)), _RADIUS_DEG, band, mjd)
        still: Table = found[found["kind"] != Kind.ASTEROID]
        return still[np.argsort(still["id"])]

    def _kept_of(self, tract: int, patch: int, band: str) -> tuple[Psf | None, Inputs | None]:
        name = DatasetId(dataset_type="template_patch", tract=tract, patch=patch, band=band)
        try:
            uri = self._archive.uri(name)
        except NotKept:
            return None, None
        return self._archive.get(name, _CORNER).psf, inputs_of_template(Path(ResourcePath(uri).ospath))

    def _midpoint_of(self, visit: int) -> float:
        """MJD TAI."""
        where = {"instrument": self._instrument, "visit": visit}
        with Butler.from_config(str(self._butler)) as butler:
            (record,) = butler.query_dimension_records("visit", data_id=where, explain=False)
        return float(record.timespan.begin.tai.mjd + record.timespan.end.tai.mjd) / 2.0


def against(truth: Columns, template: Floats) -> Columns:
    """The truth with other fluxes (nJy) in the template: what differs has the same noise, another S/N."""
    difference, before = truth["flux"] - template, truth["difference_flux"].astype(float)
    noise = np.divide(before, truth["snr"], out=np.full(len(before), np.inf), where=truth["snr"] != 0.0)
    return truth | {"template_flux": template, "difference_flux": difference, "snr": difference / np.abs(noise)}


def _mean(seen: Floats, weight: Image) -> Floats:
    """Of fluxes (visits, n), with the weights that the visits have; all have the same where the template has none."""
    weight = np.where(weight.any(0), weight, np.float32(1.0))
    result: Floats = np.average(seen, axis=0, weights=weight)
    return result


def _shown(seen: Sequence[tuple[Psf, Ints]], n: int) -> NDArray[np.bool_]:
    """(n,): which rows lie on patches whose PSF is that of most; `seen`: each patch's, and rows."""
    shown = np.zeros(n, bool)
    if seen:
        chosen = of_one_psf([psf for psf, _ in seen], [len(rows) for _, rows in seen])
        for (_, rows), one in zip(seen, chosen, strict=True):
            shown[rows] = one
    return shown


def _by_patch(truth: Columns, tract: Tract) -> Iterator[tuple[int, Ints, Ints, Ints]]:
    """Each patch of a tract in which there are sources, their rows, and their pixels x, y in it."""
    x, y = (np.rint(axis).astype(np.int64) for axis in tract.wcs.sky_to_pixel(truth["ra"], truth["dec"]))
    patch = y // PATCH_PIXELS * TRACT_PATCHES + x // PATCH_PIXELS
    for number in np.unique(patch):
        rows = np.flatnonzero(patch == number)
        yield int(number), rows, x[rows] % PATCH_PIXELS, y[rows] % PATCH_PIXELS


def _looked_up(fluxes: Table, ids: Ints) -> Floats:
    """nJy; 0 of what is not among them."""
    place = np.minimum(np.searchsorted(fluxes["id"], ids), len(fluxes) - 1)
    return np.where(fluxes["id"][place] == ids, fluxes["flux"][place], 0.0)
