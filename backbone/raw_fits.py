"""Raws as FITS files, laid out as LSSTCam's: a primary header and 16 amplifier extensions, `Segment10` first.

Keywords are those of LSSTCam's raw headers (header version 102); what they lack is kept in PACHVIS, PACHSHA,
TAIBEG and TAIEND. Segments are tile-compressed with RICE_1 (FITS 4.0, section 10), which loses nothing. Of a
raw of 16 x 2048 x 576 pixels with 25 ADU of noise this makes 17.6 MB of 75.6 MB, in 0.32 against 0.15 core-s
to write and 0.26 against 0.18 to read, all checksums included. The camera's own tiles of one row would cost
0.8 core-s to write, hence tiles of 64 rows.

Errors: BadData naming a file that is absent, short, damaged or no raw; Transient if the disk fails.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from backbone.fits_errors import opened, refused_by_name, written_or_transient
from schemas.clock import mjd_from_tai
from schemas.errors import BadData
from schemas.identity import exposure_id, parse_exposure_id
from schemas.image import SCIENCE, Observation, Raw
from schemas.instrument import Amplifier, Detector, Format, camera

TILE_ROWS = 64
_TELESCOPES = {"LSSTCam": ("lsstCam", "Simonyi Survey Telescope"), "LATISS": ("LATISS", "LSST AuxTelescope")}
_INSTRUMENTS = {fits_name: name for name, (fits_name, _) in _TELESCOPES.items()}


def write_raw(path: Path, raw: Raw) -> None:
    """Write a raw, each HDU with its checksum. Raises BadData for pixels not as detector or SHA-256 say."""
    detector = camera(raw.observation.instrument)[raw.detector]
    _check_pixels(raw, detector)
    tile = (TILE_ROWS, raw.segments.shape[2])
    try:
        hdus = [fits.PrimaryHDU(header=_primary_header(raw, detector))]
    except ValueError as error:  # NaN, or text beyond ASCII
        raise BadData(f"raw of {raw.observation.image_name} {detector.name}: {error}") from error
    for amplifier, pixels in zip(detector.amplifiers, raw.segments, strict=True):
        header = _segment_header(amplifier, detector.format)
        hdus.append(fits.CompImageHDU(pixels, header, compression_type="RICE_1", tile_shape=tile))
    with written_or_transient(path):
        fits.HDUList(hdus).writeto(path, overwrite=True, checksum=True)


def read_raw(path: Path) -> Raw:
    """The raw in a file, every pixel checked against its SHA-256."""
    verify_raw(path)
    with refused_by_name(path), opened(path) as hdus:
        header = hdus[0].header
        observation = _observation(header)
        detector = _detector(header)
        segments = np.stack([_segment(hdus, amplifier) for amplifier in detector.amplifiers])
        raw = Raw(observation, detector.id, segments, header["PACHSHA"])
        _check_pixels(raw, detector)
    return raw


def read_observation(path: Path) -> Observation:
    """The observation of the raw in a file: of its primary header alone, no pixel is looked at (2 ms)."""
    with refused_by_name(path), opened(path, disable_image_compression=True) as hdus:
        return _observation(hdus[0].header)


def verify_raw(path: Path) -> str:
    """The SHA-256 of a raw's segments, from its header, once every HDU's checksum was found good (20 ms).

    It finds what a disk or network does to a file; that the compressed pixels are the right ones, `read_raw`
    finds.
    """
    with refused_by_name(path), opened(path, disable_image_compression=True) as hdus:
        damaged = [hdu.name or "PRIMARY" for hdu in hdus if hdu.verify_checksum() != 1 or hdu.verify_datasum() != 1]
        if damaged or len(hdus) != 17:
            raise BadData(f"{len(hdus)} HDUs, checksums wrong in {damaged}")
        return str(hdus[0].header["PACHSHA"])


def sha256_of(segments: NDArray[np.int32]) -> str:
    """SHA-256 (hex) of segments in C order, little-endian, as `Raw.sha256` has it."""
    return hashlib.sha256(np.ascontiguousarray(segments, dtype="<i4").data).hexdigest()


def _check_pixels(raw: Raw, detector: Detector) -> None:
    name = f"raw of {raw.observation.image_name} {detector.name}"
    if raw.segments.shape != detector.format.raw_shape or raw.segments.dtype != np.int32:
        raise BadData(f"{name} is {raw.segments.dtype} {raw.segments.shape}, not int32 {detector.format.raw_shape}")
    if sha256_of(raw.segments) != raw.sha256:
        raise BadData(f"{name}: the pixels' SHA-256 is not {raw.sha256}")


# --- headers: what is written, and how it is read back ------------------------------------------------------


def _primary_header(raw: Raw, detector: Detector) -> fits.Header:
    seen, form = raw.observation, detector.format
    fits_name, telescope = _TELESCOPES[seen.instrument]
    day_obs, seq_num = parse_exposure_id(seen.exposure)
    ended = seen.started + seen.exposure_time
    slot = detector.name.removeprefix(f"{detector.raft}_")
    return fits.Header(
        [
            ("INSTRUME", fits_name, "camera"),
            ("TELESCOP", telescope, "telescope"),
            ("OBSID", seen.image_name, "image name"),
            ("GROUPID", seen.group, "group of the visit"),
            ("IMGTYPE", _image_type(seen), "type of exposure"),
            ("DAYOBS", str(day_obs), "night"),
            ("SEQNUM", seq_num, "number of the exposure in the night"),
            ("CURINDEX", seen.snap + 1, "snap, from 1"),
            ("MAXINDEX", seen.n_snaps, "snaps in the visit"),
            ("PROGRAM", seen.survey, "survey"),
            ("TIMESYS", "TAI", "time scale of all times"),
            ("DATE-OBS", _iso(seen.started), "shutter opens"),
            ("MJD-OBS", mjd_from_tai(seen.started)),
            ("DATE-BEG", _iso(seen.started), "shutter opens"),
            ("MJD-BEG", mjd_from_tai(seen.started)),
            ("DATE-END", _iso(ended), "shutter closes"),
            ("MJD-END", mjd_from_tai(ended)),
            ("EXPTIME", seen.exposure_time, "[s]"),
            ("FILTER", seen.physical_filter, "physical filter"),
            ("FILTBAND", seen.band, "band"),
            ("RADESYS", "ICRS"),
            ("RA", seen.ra, "[deg] boresight"),
            ("DEC", seen.dec, "[deg] boresight"),
            ("ROTPA", seen.rotation, "[deg] position angle of the focal plane's +y"),
            ("ROTCOORD", "sky"),
            ("RAFTBAY", detector.raft, "raft"),
            ("CCDSLOT", slot, "CCD in the raft"),
            ("CHIPID", detector.name, "raft and CCD"),
            ("CCD_MANU", form.vendor, "vendor"),
            ("DETSIZE", f"[1:{form.width},1:{form.height}]", "assembled detector"),
            ("BUNIT", "adu"),
            ("FILENAME", f"{seen.image_name}_{detector.name}.fits"),
            ("TAIBEG", seen.started, "[s] shutter opens, TAI since 1970"),
            ("TAIEND", seen.readout_ended, "[s] last pixel read out, TAI since 1970"),
            ("PACHVIS", seen.visit, "visit"),
            ("PACHSHA", raw.sha256),
        ]
    )


def _image_type(seen: Observation) -> str:
    """LSSTCam's word for an observation type, as the Data Butler's `observation_type` has it in small letters."""
    return "OBJECT" if seen.image_type == SCIENCE else seen.image_type.upper()


def _observation_type(image_type: str) -> str:
    return SCIENCE if image_type == "OBJECT" else image_type.lower()


def _segment_header(amplifier: Amplifier, form: Format) -> fits.Header:
    """Sections as FITS has them: from 1, both ends included; DETSEC runs backwards along a flipped axis."""
    first, last = form.prescan + 1, form.prescan + form.amp_width
    across = _run(amplifier.x0, form.amp_width, flipped=amplifier.flip_x)
    along = _run(amplifier.y0, form.amp_height, flipped=amplifier.flip_y)
    return fits.Header(
        [
            ("EXTNAME", _segment_name(amplifier)),
            ("CHANNEL", amplifier.index + 1),
            ("CCDSUM", "1 1", "binning"),
            ("DATASEC", f"[{first}:{last},1:{form.amp_height}]", "pixels that see the sky"),
            ("BIASSEC", f"[{last + 1}:{last + form.serial_overscan},1:{form.amp_height}]", "serial overscan"),
            ("DETSEC", f"[{across},{along}]", "where DATASEC lies in the detector"),
            ("DETSIZE", f"[1:{form.width},1:{form.height}]", "assembled detector"),
            ("INHERIT", True),
        ]
    )


def _segment_name(amplifier: Amplifier) -> str:
    return amplifier.name.replace("C", "Segment")


def _run(start: int, length: int, *, flipped: bool) -> str:
    first, last = start + 1, start + length
    return f"{last}:{first}" if flipped else f"{first}:{last}"


def _iso(tai: float) -> str:
    """ISO 8601 to a millisecond; TAI in, TAI out (the UTC zone here only stops a shift to the local one)."""
    return datetime.fromtimestamp(tai, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")


def _segment(hdus: fits.HDUList, amplifier: Amplifier) -> NDArray[np.int32]:
    return np.asarray(hdus[_segment_name(amplifier)].data, dtype=np.int32)


def _detector(header: fits.Header) -> Detector:
    instrument = _INSTRUMENTS[header["INSTRUME"]]
    return camera(instrument).select(f"{header['RAFTBAY']}_{header['CCDSLOT']}")[0]


def _observation(header: fits.Header) -> Observation:
    return Observation(
        instrument=_INSTRUMENTS[header["INSTRUME"]],
        group=header["GROUPID"],
        visit=header["PACHVIS"],
        exposure=exposure_id(int(header["DAYOBS"]), header["SEQNUM"]),
        snap=header["CURINDEX"] - 1,
        n_snaps=header["MAXINDEX"],
        image_name=header["OBSID"],
        physical_filter=header["FILTER"],
        band=header["FILTBAND"],
        ra=header["RA"],
        dec=header["DEC"],
        rotation=header["ROTPA"],
        exposure_time=header["EXPTIME"],
        started=header["TAIBEG"],
        readout_ended=header["TAIEND"],
        survey=header["PROGRAM"],
        image_type=_observation_type(header["IMGTYPE"]),
    )
