"""Raws of visits long read out, from the archive."""

from dataclasses import replace

from backbone.butler import ButlerArchive
from schemas.errors import BadData
from schemas.identity import DatasetId
from schemas.image import Observation, Raw
from schemas.instrument import camera


class ArchivedRaws:
    """The raws of a visit-detector as they were archived, each with its observation from its own header."""

    def __init__(self, archive: ButlerArchive) -> None:
        self._archive = archive

    def last_of(self, instrument: str, visit: int, detector: int) -> Observation:
        """The observation of a visit's last snap, which tells of the others; its band is that of its filter.

        A raw that came when its visit was over has none in its header: it was not to be processed promptly. Raises
        NotKept naming a raw that is not archived, BadData one that is damaged or of another visit.
        """
        first = self._archive.observation_of(DatasetId.of_raw(instrument, visit, detector))
        last = self._archive.observation_of(DatasetId.of_raw(instrument, visit + first.n_snaps - 1, detector))
        if last.visit != visit or last.snap != first.n_snaps - 1:
            raise BadData(f"raw {last.image_name} detector {detector} is snap {last.snap} of visit {last.visit}")
        return replace(last, band=camera(last.instrument).band_of(last.physical_filter))

    async def read(self, observation: Observation, detector: int) -> Raw:
        """A raw, every pixel checked. Raises NotKept naming one that is not archived, BadData one that is damaged."""
        raw: Raw = self._archive.get(DatasetId.of_raw(observation.instrument, observation.exposure, detector))
        return raw
