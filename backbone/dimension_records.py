"""What the Data Butler's registry knows of cameras, exposures and the sky: its dimension records.

Every function may be called again, by several processes at once: a record that is there stays as it is.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from astropy.time import Time
from lsst.daf.butler import Butler, Timespan
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from schemas import skymap
from schemas.clock import mjd_from_tai
from schemas.identity import day_obs_of_visit, parse_exposure_id
from schemas.image import SCIENCE, Observation
from schemas.instrument import Camera, Detector
from schemas.pointing import nominal_wcs
from schemas.skymap import Box, Tract
from schemas.wcs import Wcs

Record = dict[str, object]
_BY_GROUP = 1
"""The visit system in which the group that the OCS names makes the visit (Rubin: `by-group-metadata`)."""


def insert_camera(butler: Butler, camera: Camera) -> None:
    """The instrument, its detectors and filters, and its visit system."""
    name = camera.name
    _insert(
        butler,
        "instrument",
        {
            "name": name,
            "visit_system": _BY_GROUP,
            "visit_max": 10**13,
            "exposure_max": 10**13,
            "detector_max": 1000,
            "class_name": "schemas.instrument.Camera",
        },
    )
    _insert(butler, "visit_system", {"instrument": name, "id": _BY_GROUP, "name": "by-group-metadata"})
    _insert(
        butler,
        "physical_filter",
        *_filter_records(camera),
    )
    _insert(butler, "detector", *(_detector_record(name, detector) for detector in camera.detectors))


def insert_exposure(butler: Butler, camera: Camera, observation: Observation) -> None:
    """Night, group and exposure; of one of the sky, its visit, with the regions that it and each detector cover.

    A visit's timespan is that of the exposure which was told first. Calibration exposures make no visit: their
    telescope looks at no sky.
    """
    seen = observation
    key: Record = {"instrument": seen.instrument}
    day_obs = day_obs_of_visit(seen.exposure)
    _insert(butler, "day_obs", {**key, "id": day_obs})
    _insert(butler, "group", {**key, "name": seen.group})
    _insert(butler, "exposure", {**key, **_exposure_record(seen)})
    if seen.image_type == SCIENCE:
        _insert_visit(butler, camera, seen)


def _insert_visit(butler: Butler, camera: Camera, seen: Observation) -> None:
    key: Record = {"instrument": seen.instrument}
    corners = {d.id: _corners(nominal_wcs(d, seen.ra, seen.dec, seen.rotation), _box(d)) for d in camera.detectors}
    everything = ConvexPolygon.convexHull([corner for four in corners.values() for corner in four])
    _insert(butler, "visit", {**key, **_visit_record(seen), "region": everything})
    _insert(butler, "visit_definition", {**key, "visit": seen.visit, "exposure": seen.exposure})
    _insert(butler, "visit_system_membership", {**key, "visit": seen.visit, "visit_system": _BY_GROUP})
    regions = ({**key, "visit": seen.visit, "detector": d, "region": ConvexPolygon(c)} for d, c in corners.items())
    _insert(butler, "visit_detector_region", *regions)


def insert_tracts(butler: Butler, tracts: Iterable[Tract]) -> None:
    """The skymap, tracts of it, and all their patches."""
    rows = skymap.TRACT_PATCHES
    _insert(
        butler,
        "skymap",
        {
            "name": skymap.NAME,
            "hash": skymap.NAME.encode(),
            "tract_max": 1_000_000,
            "patch_nx_max": rows,
            "patch_ny_max": rows,
        },
    )
    for tract in tracts:
        plane = Box(0, 0, rows * skymap.PATCH_PIXELS, rows * skymap.PATCH_PIXELS)
        _insert(butler, "tract", {"skymap": skymap.NAME, "id": tract.id, "region": _region(tract.wcs, plane)})
        _insert(butler, "patch", *(_patch_record(tract, patch) for patch in range(rows * rows)))


def _insert(butler: Butler, element: str, *records: Record) -> None:
    butler.registry.insertDimensionData(element, *records, skip_existing=True)


def _filter_records(camera: Camera) -> list[Record]:
    return [{"instrument": camera.name, "name": name, "band": band} for name, band in camera.filters.items()]


def _detector_record(instrument: str, detector: Detector) -> Record:
    return {
        "instrument": instrument,
        "id": detector.id,
        "full_name": detector.name,
        "name_in_raft": detector.name.removeprefix(f"{detector.raft}_"),
        "raft": detector.raft,
        "purpose": "SCIENCE",
    }


def _exposure_record(seen: Observation) -> Record:
    day_obs, seq_num = parse_exposure_id(seen.exposure)
    first = seq_num - seen.snap
    return {
        "id": seen.exposure,
        "obs_id": seen.image_name,
        "physical_filter": seen.physical_filter,
        "group": seen.group,
        "day_obs": day_obs,
        "exposure_time": seen.exposure_time,
        "observation_type": seen.image_type,
        "observation_reason": seen.image_type,
        "seq_num": seq_num,
        "seq_start": first,
        "seq_end": first + seen.n_snaps - 1,
        "science_program": seen.survey,
        **_pointing(seen),
        "timespan": _timespan(seen),
    }


def _pointing(seen: Observation) -> Record:
    if seen.image_type != SCIENCE:
        return {"can_see_sky": False}
    return {"tracking_ra": seen.ra, "tracking_dec": seen.dec, "sky_angle": seen.rotation, "can_see_sky": True}


def _visit_record(seen: Observation) -> Record:
    day_obs, seq_num = parse_exposure_id(seen.visit)
    return {
        "id": seen.visit,
        "name": seen.group,
        "physical_filter": seen.physical_filter,
        "day_obs": day_obs,
        "seq_num": seq_num,
        "exposure_time": seen.exposure_time * seen.n_snaps,
        "observation_reason": "science",
        "science_program": seen.survey,
        "timespan": _timespan(seen),
    }


def tai(time: float) -> Time:
    """A time (TAI s) as the Data Butler takes it."""
    return Time(mjd_from_tai(time), format="mjd", scale="tai")


def _timespan(seen: Observation) -> Timespan:
    return Timespan(tai(seen.started), tai(seen.started + seen.exposure_time))


def _patch_record(tract: Tract, patch: int) -> Record:
    row, column = divmod(patch, skymap.TRACT_PATCHES)
    region = _region(tract.wcs, tract.patch_box(patch))
    return {
        "skymap": skymap.NAME,
        "tract": tract.id,
        "id": patch,
        "cell_x": column,
        "cell_y": row,
        "region": region,
    }


def _box(detector: Detector) -> Box:
    return Box(0, 0, detector.format.width, detector.format.height)


def _region(wcs: Wcs, box: Box) -> ConvexPolygon:
    return ConvexPolygon(_corners(wcs, box))


def _corners(wcs: Wcs, box: Box) -> Sequence[UnitVector3d]:
    """The outer corners of a box of pixels, on the unit sphere."""
    x = np.array([box.x0, box.x1, box.x1, box.x0]) - 0.5
    y = np.array([box.y0, box.y0, box.y1, box.y1]) - 0.5
    return [UnitVector3d(LonLat.fromDegrees(ra, dec)) for ra, dec in zip(*wcs.pixel_to_sky(x, y), strict=True)]
