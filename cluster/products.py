"""A visit-detector's context from the Butler."""

from dataclasses import dataclass, field
from functools import lru_cache

from backbone.butler import ButlerArchive
from payloads.alert_production.pipeline import Context
from schemas.identity import DatasetId
from schemas.image import Calibration
from schemas.instrument import Detector, camera
from schemas.pointing import nominal_wcs

REFCAT_RADIUS_DEG = 0.2
"""About a CCD's centre: half its diagonal, and what the pointing may be off."""
