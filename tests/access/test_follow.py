"""An alert as a line and as a picture, and how a message becomes one."""

import asyncio
import io
import struct
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from matplotlib.image import imread
from numpy.typing import NDArray

from access.stamp_picture import CUTOUTS, pixels, write_picture
from backbone.registry_client import RegistryClient
from backbone.schema_registry import SchemaRegistry
from schemas.errors import BadData, Transient

SIDE = 41
RAMP = np.tile(np.arange(SIDE, dtype=np.float32), (SIDE, 1))
SOURCE = {
    "ssObjectId": None, "diaObjectId": 12, "midpointMjdTai": 61000.25, "band": "r", "ra": 150.0, "dec": -2.5,
    "psfFlux": 1234.4, "snr": 25.04, "reliability": 0.876,
}  # fmt: skip
SCHEMA: dict[str, object] = {
    "type": "record", "name": "alert", "fields": [
        {"name": "diaSourceId", "type": "long"}, {"name": "cutoutScience", "type": ["null", "bytes"]},
    ],
}  # fmt: skip
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def follow() -> Any:
    import authlib.deprecate  # noqa: F401, PLC0415 - it turns its own warnings on when it is imported, so first

    with warnings.catch_warnings():  # as `pachon alerts` does: authlib warns of its own future
        warnings.simplefilter("ignore")
        from access import follow as module  # noqa: PLC0415
    return module


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SchemaRegistry]:
    async with SchemaRegistry(tmp_path / "registry.json") as server:
        yield server


def stamp(image: NDArray[Any] | None) -> bytes:
    out = io.BytesIO()
    fits.PrimaryHDU(image).writeto(out)
    return out.getvalue()


def alert(**changes: Any) -> dict[str, Any]:
    """Science is brighter to the right, template to the left, difference to the top."""
    cutouts = dict(zip(CUTOUTS, map(stamp, (RAMP, RAMP[:, ::-1], RAMP.T)), strict=True))
    return {"diaSourceId": 42, "diaSource": SOURCE, "prvDiaSources": None, **cutouts} | changes


def panels(path: Path) -> list[NDArray[Any]]:
    """The inside of each third of a picture, in grey."""
    grey = imread(path)[..., :3].mean(axis=2)
    ny, nx = grey.shape
    return [third[ny // 4 : -ny // 10, nx // 20 : -nx // 20] for third in np.array_split(grey, 3, axis=1)]


def brighter(panel: NDArray[Any]) -> tuple[float, float]:
    """By how much the right half is brighter than the left, and the upper than the lower."""
    ny, nx = panel.shape
    right = panel[:, nx // 2 :].mean() - panel[:, : nx // 2].mean()
    return float(right), float(panel[: ny // 2].mean() - panel[ny // 2 :].mean())


class TestPicture:
    def test_it_has_science_template_and_difference_from_left_to_right(self, tmp_path: Path) -> None:
        write_picture(alert(), tmp_path / "42.png")
        science, template, difference = map(brighter, panels(tmp_path / "42.png"))
        assert science == pytest.approx((0.4, 0.0), abs=0.1)
        assert template == pytest.approx((-0.4, 0.0), abs=0.1)
        assert difference == pytest.approx((0.0, 0.4), abs=0.1)

    def test_one_bad_pixel_does_not_darken_the_rest(self, tmp_path: Path) -> None:
        image = RAMP.copy()
        image[20, 20], image[3, 3] = 1e9, np.nan
        write_picture(alert(cutoutScience=stamp(image)), tmp_path / "42.png")
        assert brighter(panels(tmp_path / "42.png")[0]) == pytest.approx((0.4, 0.0), abs=0.1)

    @pytest.mark.parametrize("cutout", [None, stamp(np.full((SIDE, SIDE), np.nan, np.float32))], ids=["none", "NaN"])
    def test_a_cutout_without_a_pixel_leaves_its_panel_empty(self, tmp_path: Path, cutout: bytes | None) -> None:
        write_picture(alert(cutoutTemplate=cutout), tmp_path / "42.png")
        science, template, _ = panels(tmp_path / "42.png")
        assert np.ptp(science) > 0.5
        assert np.ptp(template) == 0.0

    def test_an_alert_without_flux_has_a_picture_all_the_same(self, tmp_path: Path) -> None:
        write_picture(alert(diaSource=SOURCE | {"psfFlux": None, "snr": None}), tmp_path / "42.png")
        assert len(panels(tmp_path / "42.png")) == 3

    @pytest.mark.parametrize(
        "broken", [b"", b"rubbish", stamp(RAMP)[:3000], stamp(None), stamp(np.zeros((2, 3, 4)))],
        ids=["empty", "rubbish", "cut off", "no image", "a cube"],
    )  # fmt: skip
    def test_a_broken_cutout_is_refused_by_its_name_and_the_alerts(self, tmp_path: Path, broken: bytes) -> None:
        with pytest.raises(BadData, match=r"^cutoutTemplate of alert 42 "):
            write_picture(alert(cutoutTemplate=broken), tmp_path / "42.png")
        assert list(tmp_path.iterdir()) == []

    def test_pixels_come_back_value_for_value(self) -> None:
        np.testing.assert_array_equal(pixels(stamp(RAMP), "a ramp"), RAMP)


class TestLine:
    def test_it_says_what_was_seen_where_and_how_sure_it_is(self, follow: Any) -> None:
        assert follow.line(alert(prvDiaSources=[SOURCE, SOURCE])) == (
            "42  MJD 61000.25000  r  ra 150.00000 dec  -2.50000  flux      1234 nJy  S/N   25.0  reliability 0.88"
            "  DIAObject 12  history 2"
        )

    def test_a_solar_system_object_goes_by_its_own_name(self, follow: Any) -> None:
        assert follow.line(alert(diaSource=SOURCE | {"ssObjectId": 77, "diaObjectId": None})).endswith(
            "SSObject 77  history 0"
        )

    def test_what_an_alert_does_not_have_is_a_dash(self, follow: Any) -> None:
        bare = alert(diaSource=SOURCE | {"psfFlux": None, "snr": None, "reliability": None})
        assert "flux - nJy  S/N -  reliability -  DIAObject 12" in follow.line(bare)


class TestDecoder:
    async def test_a_message_is_read_by_the_schema_that_the_registry_holds(
        self, follow: Any, registry: SchemaRegistry
    ) -> None:
        record = {"diaSourceId": 42, "cutoutScience": stamp(RAMP)}
        schema_id, body = await registered(registry), encoded(record)
        with follow.Decoder(registry.url) as decoder:
            decoded = await asyncio.to_thread(decoder.decode, struct.pack(">bI", 0, schema_id) + body, "here")
        assert decoded == record

    async def test_a_message_cut_off_or_of_an_unknown_schema_is_refused_by_its_place(
        self, follow: Any, registry: SchemaRegistry
    ) -> None:
        schema_id, body = await registered(registry), encoded({"diaSourceId": 42, "cutoutScience": b"12345"})
        with follow.Decoder(registry.url) as decoder:
            with pytest.raises(BadData, match=r"^alerts 0:7: the message is not what its schema says"):
                await asyncio.to_thread(decoder.decode, struct.pack(">bI", 0, schema_id) + body[:-2], "alerts 0:7")
            with pytest.raises(BadData, match=f"no schema {schema_id + 1}"):
                await asyncio.to_thread(decoder.decode, struct.pack(">bI", 0, schema_id + 1) + body, "alerts 0:7")

    @pytest.mark.parametrize("payload", [b"", b"\0\0", b"\1\0\0\0\1body"])
    def test_a_message_without_a_header_is_refused_before_the_registry_is_asked(
        self, follow: Any, payload: bytes
    ) -> None:
        refused = pytest.raises(BadData, match=r"^alerts 0:7: the message has no Confluent header")
        with follow.Decoder(CLOSED) as decoder, refused:
            decoder.decode(payload, "alerts 0:7")

    def test_a_registry_that_does_not_answer_is_transient(self, follow: Any) -> None:
        silent = pytest.raises(Transient, match="the schema registry does not answer")
        with follow.Decoder(CLOSED) as decoder, silent:
            decoder.decode(struct.pack(">bI", 0, 1101) + b"body", "alerts 0:7")


class TestMessages:
    def test_a_start_that_is_none_is_refused_by_name(self, follow: Any) -> None:
        with pytest.raises(BadData, match="--start 'yesterday' is neither"):
            next(follow.messages("127.0.0.1:9", "alerts", "yesterday", 1.0))

    def test_a_broker_that_does_not_answer_is_transient(self, follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(follow, "METADATA_DEADLINE_S", 0.3)
        with pytest.raises(Transient, match="the broker does not answer"):
            next(follow.messages("127.0.0.1:9", "alerts", "earliest", 1.0))


async def registered(registry: SchemaRegistry) -> int:
    async with RegistryClient(registry.url) as client:
        return await client.register("alerts-value", SCHEMA)


def encoded(record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), record)
    return out.getvalue()
