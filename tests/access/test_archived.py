from pathlib import Path

import pytest

from access.archived import show
from backbone.alert_archive import AlertArchive
from backbone.l1 import VisitDetectorResult
from payloads.alert_production.alert_schema import alert_schema
from schemas.errors import BadData
from tests.actors.packets_of import packets_of
from tests.backbone.l1_results import result

VISIT, DETECTOR = 2026070500001, 94


@pytest.fixture(scope="module")
def stored() -> VisitDetectorResult:
    return result(VISIT, DETECTOR, n=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, stored: VisitDetectorResult) -> AlertArchive:
    kept = AlertArchive(tmp_path_factory.mktemp("archive"), alert_schema())
    kept.write(VISIT, DETECTOR, packets_of(stored), stored.alert_ids, stored.alert_keys())
    return kept


def test_alerts_are_shown_by_their_source(
    archive: AlertArchive, stored: VisitDetectorResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = stored.alert_ids[:2].tolist()
    assert show(archive, wanted, None, tmp_path / "stamps", None) == 0
    assert [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()] == wanted
    assert {path.stem for path in (tmp_path / "stamps").glob("*.png")} == set(map(str, wanted))


def test_all_alerts_of_an_object_are_shown(
    archive: AlertArchive, stored: VisitDetectorResult, capsys: pytest.CaptureFixture[str]
) -> None:
    key = int(stored.alert_keys()[0])
    show(archive, (), key, None, None)
    owners = stored.alert_keys()
    shown = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert shown == sorted(stored.alert_ids[owners == key].tolist())


@pytest.mark.parametrize(("dia_sources", "key"), [((), None), ((1,), 2)])
def test_one_of_both_ways_must_be_chosen(archive: AlertArchive, dia_sources: tuple[int, ...], key: int | None) -> None:
    with pytest.raises(BadData, match="either --dia-source or --object"):
        show(archive, dia_sources, key, None, None)


def test_what_is_not_there_is_named(archive: AlertArchive, stored: VisitDetectorResult) -> None:
    with pytest.raises(BadData, match="no alert about object 5"):
        show(archive, (), 5, None, None)
    with pytest.raises(BadData, match=str(int(stored.alert_ids[0]) + 1000)):
        show(archive, [int(stored.alert_ids[0]) + 1000], None, None, None)
