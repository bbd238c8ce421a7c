"""Raws as FITS: read back bit for bit, laid out as LSSTCam's, and refused by name when damaged."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits

from backbone.raw_fits import read_observation, read_raw, sha256_of, verify_raw, write_raw
from schemas.errors import BadData, Transient
from schemas.image import Raw
from schemas.instrument import camera
from tests.backbone.full_disk import files_of_at_most
from tests.backbone.kept_objects import E2V_DETECTOR, ITL_DETECTOR, observation, raw, sha256

HEADERS = Path(__file__).parents[3] / "shared" / "data" / "headers"
OWN_KEYWORDS = {"TAIBEG", "TAIEND", "PACHVIS", "PACHSHA", "CHIPID", "BIASSEC"}
SECTION = re.compile(r"\[(\d+):(\d+),(\d+):(\d+)\]")


@pytest.fixture(scope="module")
def taken() -> Raw:
    return raw()


@pytest.fixture(scope="module")
def file(taken: Raw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raws") / "raw.fits"
    write_raw(path, taken)
    return path


def read_section(text: str) -> tuple[slice, slice]:
    """Rows and columns of a FITS section; one that runs backwards gives a slice that does."""
    x0, x1, y0, y1 = (int(v) for v in SECTION.fullmatch(text).groups())
    return tuple(
        slice(a - 1, b) if a <= b else slice(a - 1, b - 2 if b > 1 else None, -1) for a, b in ((y0, y1), (x0, x1))
    )


def test_a_raw_is_read_back_bit_for_bit_with_all_that_is_known_of_it(taken: Raw, file: Path) -> None:
    back = read_raw(file)
    assert back.segments.dtype == np.int32
    assert np.array_equal(back.segments, taken.segments)
    assert (back.observation, back.detector, back.sha256) == (taken.observation, taken.detector, taken.sha256)


def test_pixels_of_any_value_survive_compression(tmp_path: Path) -> None:
    segments = np.random.default_rng(2).integers(-(2**31), 2**31, (16, 2048, 576)).astype(np.int32)
    segments[0], segments[1], segments[2, ::2] = 0, 2**31 - 1, -(2**31)
    wild = Raw(observation(), ITL_DETECTOR, segments, sha256(segments))
    write_raw(tmp_path / "wild.fits", wild)
    assert np.array_equal(read_raw(tmp_path / "wild.fits").segments, segments)


def test_a_raw_of_latiss_is_read_back(tmp_path: Path) -> None:
    auxiliary = raw(detector=0, instrument="LATISS")
    write_raw(tmp_path / "latiss.fits", auxiliary)
    back = read_raw(tmp_path / "latiss.fits")
    assert back.observation == auxiliary.observation
    assert np.array_equal(back.segments, auxiliary.segments)


@pytest.mark.parametrize(("image_type", "word"), [("bias", "BIAS"), ("flat", "FLAT"), ("science", "OBJECT")])
def test_what_a_raw_was_taken_for_is_in_its_header(image_type: str, word: str, taken: Raw, tmp_path: Path) -> None:
    other = replace(taken, observation=replace(taken.observation, image_type=image_type))
    write_raw(tmp_path / "raw.fits", other)
    assert fits.getheader(tmp_path / "raw.fits")["IMGTYPE"] == word
    assert read_observation(tmp_path / "raw.fits") == other.observation


def test_a_raw_takes_a_fourth_of_its_pixels_room(file: Path, taken: Raw) -> None:
    assert file.stat().st_size < 0.27 * taken.segments.nbytes


def test_the_checksum_is_that_of_the_pixels_in_c_order(taken: Raw, file: Path) -> None:
    assert sha256_of(np.asfortranarray(taken.segments)) == sha256_of(taken.segments) == sha256(taken.segments)
    assert verify_raw(file) == taken.sha256


def test_astropy_alone_reads_the_pixels_by_the_names_of_the_segments(taken: Raw, file: Path) -> None:
    names = [f"Segment1{i}" for i in range(8)] + [f"Segment0{i}" for i in reversed(range(8))]
    with fits.open(file, checksum=True) as hdus:
        assert [hdu.header["EXTNAME"] for hdu in hdus[1:]] == names
        assert [hdu.header["CHANNEL"] for hdu in hdus[1:]] == list(range(1, 17))
        for name, pixels in zip(names, taken.segments, strict=True):
            assert np.array_equal(hdus[name].data, pixels)


@pytest.mark.parametrize("number", [E2V_DETECTOR, ITL_DETECTOR])
def test_datasec_and_detsec_put_every_pixel_where_the_camera_says(number: int, tmp_path: Path) -> None:
    detector = camera("LSSTCam")[number]
    form = detector.format
    place = np.arange(form.height * form.width, dtype=np.int32).reshape(form.height, form.width)
    segments = np.full(form.raw_shape, -1, np.int32)
    for amplifier in detector.amplifiers:
        part = place[amplifier.y0 :, amplifier.x0 :][: form.amp_height, : form.amp_width]
        part = part[:: -1 if amplifier.flip_y else 1, :: -1 if amplifier.flip_x else 1]
        segments[amplifier.index, : form.amp_height, form.prescan : form.prescan + form.amp_width] = part
    write_raw(tmp_path / "raw.fits", Raw(observation(), number, segments, sha256(segments)))

    with fits.open(tmp_path / "raw.fits") as hdus:
        assembled = np.zeros_like(place)
        assert hdus[1].header["DETSIZE"] == f"[1:{form.width},1:{form.height}]"
        for hdu in hdus[1:]:
            assembled[read_section(hdu.header["DETSEC"])] = hdu.data[read_section(hdu.header["DATASEC"])]
            assert (hdu.data[read_section(hdu.header["BIASSEC"])] == -1).all()
    assert np.array_equal(assembled, place)


def test_the_primary_header_is_the_observatorys(taken: Raw, file: Path) -> None:
    header = fits.getheader(file)
    expected = {
        "INSTRUME": "lsstCam", "TELESCOP": "Simonyi Survey Telescope", "OBSID": "MC_O_20260705_000004",
        "GROUPID": taken.observation.group, "DAYOBS": "20260705", "SEQNUM": 4, "IMGTYPE": "OBJECT",
        "CURINDEX": 1, "MAXINDEX": 2, "TIMESYS": "TAI", "EXPTIME": 15.0, "FILTER": "r_57", "FILTBAND": "r",
        "RAFTBAY": "R22", "CCDSLOT": "S11", "CHIPID": "R22_S11", "PACHSHA": taken.sha256,
        "DATE-BEG": "2026-07-06T01:22:03.123", "DATE-END": "2026-07-06T01:22:18.123",
    }  # fmt: skip
    assert {name: header[name] for name in expected} == expected
    assert header["MJD-BEG"] == pytest.approx(40587.0 + taken.observation.started / 86400.0, abs=1e-9)
    assert header["MJD-END"] - header["MJD-BEG"] == pytest.approx(15.0 / 86400.0, abs=1e-9)


@pytest.mark.skipif(not HEADERS.is_dir(), reason="the real LSSTCam headers are not beside the repository")
def test_no_keyword_is_invented_that_the_real_headers_do_not_have(file: Path) -> None:
    real = yaml.safe_load((HEADERS / "lsstCam-MC_O_20260315_000051_R01_S01.yaml").read_text())
    with fits.open(file) as hdus:
        ours = {name for hdu in hdus[:2] for name in hdu.header if name} - OWN_KEYWORDS
    structural = {"BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT"}
    assert ours - structural - set(real) == set()


@pytest.mark.skipif(not HEADERS.is_dir(), reason="the real LSSTCam headers are not beside the repository")
def test_values_have_the_types_of_the_real_headers(file: Path) -> None:
    real = yaml.safe_load((HEADERS / "lsstCam-MC_O_20250609_000578_R01_S01.yaml").read_text())
    header = fits.getheader(file)
    both = [name for name in header if real.get(name) is not None]
    assert len(both) > 25
    assert [n for n in both if type(header[n]) is not type(real[n])] == []


def test_a_file_cut_short_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    for part in (0.0, 0.0001, 0.5, 0.9999):
        short = tmp_path / "short.fits"
        short.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
        with pytest.raises(BadData, match=r"short\.fits"):
            read_raw(short)


@pytest.mark.parametrize("place", [b"RA      =   15", b"SEQNUM  ", b"Segment05", b"DETSEC  = '["])
def test_one_flipped_bit_in_a_header_is_refused_by_name(file: Path, tmp_path: Path, place: bytes) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(place) + len(place) + 1] ^= 0x01
    (tmp_path / "flipped.fits").write_bytes(data)
    with pytest.raises(BadData, match=r"flipped\.fits"):
        read_raw(tmp_path / "flipped.fits")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.97])
def test_one_flipped_bit_in_the_pixels_is_refused_by_name(file: Path, tmp_path: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 0x10
    flipped = tmp_path / "flipped.fits"
    flipped.write_bytes(data)
    with pytest.raises(BadData, match=r"flipped\.fits"):
        read_raw(flipped)
    with pytest.raises(BadData, match=r"flipped\.fits"):
        verify_raw(flipped)


def test_pixels_that_were_changed_with_their_fits_checksums_are_still_refused(tmp_path: Path, file: Path) -> None:
    with fits.open(file) as hdus:
        hdus[3].data[100, 100] += 1
        hdus.writeto(tmp_path / "forged.fits", checksum=True)
    verify_raw(tmp_path / "forged.fits")
    with pytest.raises(BadData, match=r"forged\.fits.*SHA-256"):
        read_raw(tmp_path / "forged.fits")


def test_an_absent_file_and_one_that_is_no_raw_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"nowhere\.fits"):
        read_raw(tmp_path / "nowhere.fits")
    (tmp_path / "letter.fits").write_text("Dear Sir or Madam")
    with pytest.raises(BadData, match=r"letter\.fits"):
        read_raw(tmp_path / "letter.fits")
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "picture.fits", checksum=True)
    with pytest.raises(BadData, match=r"picture\.fits"):
        read_raw(tmp_path / "picture.fits")


def test_a_short_raw_is_refused_by_name_before_anything_is_written(taken: Raw, tmp_path: Path) -> None:
    cut = taken.segments[:, :-1]
    with pytest.raises(BadData, match=r"MC_O_20260705_000004 R22_S11 .*2047"):
        write_raw(tmp_path / "raw.fits", replace(taken, segments=cut, sha256=sha256(cut)))
    assert not (tmp_path / "raw.fits").exists()


def test_pixels_that_are_not_those_of_the_checksum_are_refused(taken: Raw, tmp_path: Path) -> None:
    other = taken.segments.copy()
    other[5, 6, 7] ^= 1
    with pytest.raises(BadData, match=r"R22_S11.*SHA-256"):
        write_raw(tmp_path / "raw.fits", replace(taken, segments=other))


def test_a_pointing_that_is_not_a_number_is_refused_by_name(taken: Raw, tmp_path: Path) -> None:
    lost = replace(taken, observation=replace(taken.observation, ra=float("nan")))
    with pytest.raises(BadData, match="MC_O_20260705_000004 R22_S11"):
        write_raw(tmp_path / "raw.fits", lost)


def test_a_full_disk_is_transient_and_names_the_file(taken: Raw, tmp_path: Path) -> None:
    with files_of_at_most(1_000_000), pytest.raises(Transient, match=r"raw\.fits.*no room"):
        write_raw(tmp_path / "raw.fits", taken)
