"""A visit-detector's context, from the Butler."""

from functools import lru_cache

from backbone.butler import ButlerArchive
from backbone.sky_products import refcat_for, template_for
from payloads.alert_production.pipeline import Context
from schemas.clock import midnight_of
from schemas.identity import DatasetId
from schemas.image import Calibration
from schemas.instrument import Detector, camera
from schemas.pointing import nominal_wcs

STARS_WITHIN_DEG = 0.2
"""Half a CCD's diagonal, and what the pointing may be off."""
KEPT_CALIBRATIONS = 4
"""In memory at once: 0.2 GB each."""


class ButlerProducts:
    """Calibrations, templates and reference stars as they are kept."""

    def __init__(self, archive: ButlerArchive, instrument: str) -> None:
        self._archive = archive
        self._camera = camera(instrument)
        self._calibration = lru_cache(maxsize=KEPT_CALIBRATIONS)(self._read_calibration)

    def context_for(
        self, detector: Detector, ra: float, dec: float, rotation: float, physical_filter: str, day_obs: int
    ) -> Context:
        """All that a visit-detector of a night needs. Raises NotKept naming what there is none of."""
        wcs = nominal_wcs(detector, ra, dec, rotation)
        shape = detector.format.height, detector.format.width
        center = wcs.pixel_to_sky((shape[1] - 1) / 2, (shape[0] - 1) / 2)
        return Context(
            detector=detector,
            calibration=self._calibration(detector.id, physical_filter, day_obs),
            template=template_for(self._archive, wcs, shape, self._camera.band_of(physical_filter)),
            refcat=refcat_for(self._archive, float(center[0]), float(center[1]), STARS_WITHIN_DEG),
        )

    def _read_calibration(self, detector: int, physical_filter: str, day_obs: int) -> Calibration:
        name = DatasetId(
            dataset_type="calibration", instrument=self._camera.name, detector=detector, physical_filter=physical_filter
        )
        kept: Calibration = self._archive.get_certified(name, midnight_of(day_obs))
        return kept
