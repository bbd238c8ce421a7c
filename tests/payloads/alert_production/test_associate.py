from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from payloads.alert_production.associate import Association, associate
from payloads.imaging.sphere import position_at
from schemas.errors import BadData
from schemas.tables import EPHEMERIS_DTYPE, Table, empty, nulls
from schemas.wcs import separation_arcsec

Floats = NDArray[np.float64]
Place = tuple[float, float]

MJD = 61041.22
NO_OBJECTS, NO_EPHEMERIDES = empty("DiaObject", 0), nulls(EPHEMERIS_DTYPE, 0)


def _sources(ra: ArrayLike, dec: ArrayLike, error_arcsec: ArrayLike = 0.05) -> Table:
    table = empty("DiaSource", np.size(ra))
    table["diaSourceId"], table["midpointMjdTai"] = 101 + np.arange(np.size(ra)), MJD
    table["ra"], table["dec"] = ra, dec
    table["raErr"] = table["decErr"] = error_arcsec / 3600.0
    return table


def _objects(ra: ArrayLike, dec: ArrayLike, error_arcsec: ArrayLike = 0.02) -> Table:
    table = empty("DiaObject", np.size(ra))
    table["diaObjectId"], table["ra"], table["dec"] = 1 + np.arange(np.size(ra)), ra, dec
    table["raErr"] = table["decErr"] = np.asarray(error_arcsec) / 3600.0
    return table


def _ephemerides(ra: ArrayLike, dec: ArrayLike, radius: ArrayLike = 1.0) -> Table:
    table = nulls(EPHEMERIS_DTYPE, np.size(ra))
    table["ssObjectId"], table["ra"], table["dec"], table["radius"] = (
        7001 + np.arange(np.size(ra)),
        ra,
        dec,
        radius,
    )
    table["designation"] = [f"2031 A{k}" for k in range(np.size(ra))]
    for name in ("rate_ra", "rate_dec", "range_rate"):
        table[name] = 0.1
    for name in ("topo_range", "helio_range", "phase_angle"):
        table[name] = 2.0
    return table


def test_a_source_takes_the_object_at_its_place_and_the_rest_become_new() -> None:
    sources = _sources([10.0, 10.1, 10.2], [-30.0, -30.0, -30.0])
    found = associate(sources, _objects([10.1, 50.0], [-30.0001, 0.0]), NO_EPHEMERIDES)
    assert found.sources["diaObjectId"].tolist() == [101, 1, 103]
    assert found.sources["ssObjectId"].tolist() == [0, 0, 0]
    assert found.updated_ids.tolist() == [1]
    assert found.new_objects["diaObjectId"].tolist() == [101, 103]
    assert found.new_objects["ra"].tolist() == [10.0, 10.2]
    assert found.new_objects["nDiaSources"].tolist() == [0, 0]


def test_the_input_is_left_as_it_was() -> None:
    sources = _sources([10.0], [-30.0])
    sources["diaObjectId"] = 5
    sources.flags.writeable = False
    assert associate(sources, NO_OBJECTS, NO_EPHEMERIDES).sources["diaObjectId"][0] == 101
    assert sources["diaObjectId"][0] == 5


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ((359.99995, 12.0), (0.00005, 12.0)),
        ((0.0, 89.99995), (180.0, 89.99995)),
        ((77.0, -90.0), (200.0, -89.9999)),
    ],
)
def test_neither_ra_zero_nor_the_poles_part_a_pair(source: Place, known: Place) -> None:
    assert separation_arcsec(*source, *known) < 1.0
    found = associate(_sources([source[0]], [source[1]]), _objects([known[0]], [known[1]]), NO_EPHEMERIDES)
    assert found.sources["diaObjectId"].tolist() == [1]


@pytest.mark.parametrize(("offset", "matched"), [(0.999, True), (1.001, False)])
def test_one_arcsecond_is_the_limit(offset: float, matched: bool) -> None:
    ra, dec = position_at(33.0, -60.0, offset, 0.0)
    found = associate(_sources([ra], [dec]), _objects([33.0], [-60.0]), NO_EPHEMERIDES)
    assert (len(found.new_objects) == 0) == matched


def test_a_solar_system_object_comes_before_a_dia_object() -> None:
    sources = _sources([10.0, 10.0], [5.0, 5.0 + 0.3 / 3600.0])
    found = associate(sources, _objects([10.0], [5.0]), _ephemerides([10.0], [5.0]))
    assert found.sources["ssObjectId"].tolist() == [7001, 0]
    assert found.sources["diaObjectId"].tolist() == [0, 1]
    assert found.ss_sources["diaSourceId"].tolist() == [101]
    assert found.ss_sources["diaDistanceRank"].tolist() == [1]


def test_a_prediction_reaches_as_far_as_its_radius_and_at_least_an_arcsecond() -> None:
    ra, dec = position_at([20.0, 21.0, 22.0], 0.0, [0.9, 0.9, 3.5], 0.0)
    sources = _sources(ra, dec)
    found = associate(sources, NO_OBJECTS, _ephemerides([20.0, 21.0, 22.0], [0.0] * 3, [0.1, np.nan, 4.0]))
    assert found.sources["ssObjectId"].tolist() == [7001, 7002, 7003]


def test_the_second_nearest_source_is_told_its_rank() -> None:
    """The nearer pair of the two is taken; the other prediction gets its second nearest source."""
    ra, dec = position_at(40.0, 10.0, np.array([0.0, 0.5]), 0.0)
    places = position_at(40.0, 10.0, np.array([0.05, -0.3]), 0.0)
    found = associate(_sources(ra, dec), NO_OBJECTS, _ephemerides(*places, radius=1.0))
    order = np.argsort(found.ss_sources["ssObjectId"])
    assert found.ss_sources["ssObjectId"][order].tolist() == [7001, 7002]
    assert found.ss_sources["diaSourceId"][order].tolist() == [101, 102]
    assert found.ss_sources["diaDistanceRank"][order].tolist() == [1, 2]


def test_a_vague_object_does_not_steal_a_source_from_a_sharp_one() -> None:
    ra, dec = position_at(80.0, -10.0, np.array([0.10, -0.08]), 0.0)
    found = associate(_sources([80.0], [-10.0]), _objects(ra, dec, error_arcsec=[0.02, 0.8]), NO_EPHEMERIDES)
    assert found.sources["diaObjectId"].tolist() == [1]


def test_a_sharp_offset_that_is_ten_sigma_away_loses_to_a_vague_one_that_is_not() -> None:
    ra, dec = position_at(80.0, -10.0, np.array([0.8, -0.9]), 0.0)
    found = associate(_sources([80.0], [-10.0]), _objects(ra, dec, error_arcsec=[0.01, 0.5]), NO_EPHEMERIDES)
    assert found.sources["diaObjectId"].tolist() == [2]


def test_positions_without_errors_are_matched_all_the_same() -> None:
    found = associate(
        _sources([80.0], [-10.0], error_arcsec=np.nan),
        _objects([80.0], [-10.0], error_arcsec=np.nan),
        NO_EPHEMERIDES,
    )
    assert found.sources["diaObjectId"].tolist() == [1]


def _crowd(places: list[Place], center: Place) -> tuple[Floats, Floats]:
    x, y = np.asarray(places, dtype=float).reshape(-1, 2).T
    return position_at(np.full(len(x), center[0]), np.full(len(x), center[1]), x, y)


PLACES = st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), max_size=12)


@given(PLACES, PLACES, PLACES, st.sampled_from([(0.0, 0.0), (359.9999, 60.0), (50.0, 89.9999), (10.0, -90.0)]))
@settings(max_examples=200, deadline=None)
def test_however_crowded_each_source_gets_one_object_and_each_object_one_source(
    here: list[Place], known: list[Place], moving: list[Place], center: Place
) -> None:
    sources, objects = _sources(*_crowd(here, center)), _objects(*_crowd(known, center))
    ephemerides = _ephemerides(*_crowd(moving, center))
    found = associate(sources, objects, ephemerides)
    dia, ss = found.sources["diaObjectId"], found.sources["ssObjectId"]
    assert np.all((dia == 0) != (ss == 0))
    for ids in (dia[dia != 0], ss[ss != 0]):
        assert len(np.unique(ids)) == len(ids)
    assert sorted(np.concatenate([found.new_objects["diaObjectId"], found.updated_ids])) == sorted(dia[dia != 0])
    assert len(found.ss_sources) == np.count_nonzero(ss)
    _assert_nobody_was_left_out(found, objects, ephemerides)


def _assert_nobody_was_left_out(found: Association, objects: Table, ephemerides: Table) -> None:
    """Nothing unmatched is within an arcsecond of what it could have been matched to."""
    lonely = found.sources[np.isin(found.sources["diaObjectId"], found.new_objects["diaObjectId"])]
    unseen = objects[~np.isin(objects["diaObjectId"], found.updated_ids)]
    still = found.sources[found.sources["ssObjectId"] == 0]
    missed = ephemerides[~np.isin(ephemerides["ssObjectId"], found.sources["ssObjectId"])]
    for one, other in ((lonely, unseen), (still, missed)):
        apart = separation_arcsec(one["ra"][:, None], one["dec"][:, None], other["ra"], other["dec"])
        assert np.all(apart > 1.0 - 1e-6)


@given(PLACES, PLACES, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_rows_changes_nothing(here: list[Place], known: list[Place], random: Random) -> None:
    here, known = list(dict.fromkeys(here)), list(dict.fromkeys(known))
    sources, objects = _sources(*_crowd(here, (20.0, 30.0))), _objects(*_crowd(known, (20.0, 30.0)))
    turned = random.sample(range(len(sources)), len(sources))
    straight = associate(sources, objects, NO_EPHEMERIDES).sources
    shuffled = associate(sources[turned], objects[::-1], NO_EPHEMERIDES).sources
    assert np.array_equal(straight[turned]["diaObjectId"], shuffled["diaObjectId"])


def test_nothing_in_nothing_out() -> None:
    found = associate(empty("DiaSource", 0), NO_OBJECTS, NO_EPHEMERIDES)
    assert [len(t) for t in (found.sources, found.new_objects, found.ss_sources, found.updated_ids)] == [0] * 4


def test_objects_and_predictions_without_sources_stay_unseen() -> None:
    found = associate(empty("DiaSource", 0), _objects([1.0], [2.0]), _ephemerides([1.0], [2.0]))
    assert len(found.new_objects) == len(found.ss_sources) == len(found.updated_ids) == 0


@pytest.mark.parametrize("column", ["ra", "dec"])
def test_a_source_without_a_position_is_refused_by_its_number(column: str) -> None:
    sources = _sources([10.0, 11.0], [5.0, 5.0])
    sources[column][1] = np.nan
    with pytest.raises(BadData, match=f"DiaSource 102 has no position: .*{column} nan"):
        associate(sources, NO_OBJECTS, NO_EPHEMERIDES)


def test_an_object_beyond_the_pole_is_refused_by_its_number() -> None:
    with pytest.raises(BadData, match=r"DiaObject 1 has no position: ra 0\.0, dec 91\.0"):
        associate(_sources([10.0], [5.0]), _objects([0.0], [91.0]), NO_EPHEMERIDES)


def test_a_prediction_without_a_position_is_refused_by_its_number() -> None:
    with pytest.raises(BadData, match="ephemeris 7001 has no position"):
        associate(_sources([10.0], [5.0]), NO_OBJECTS, _ephemerides([np.nan], [0.0]))


def test_a_number_that_comes_twice_is_refused() -> None:
    sources = _sources([10.0, 11.0], [5.0, 5.0])
    sources["diaSourceId"] = 9
    with pytest.raises(BadData, match="the DiaSource table holds diaSourceId 9 more than once"):
        associate(sources, NO_OBJECTS, NO_EPHEMERIDES)
    with pytest.raises(BadData, match="the DiaObject table holds diaObjectId 1 more than once"):
        associate(_sources([10.0], [5.0]), np.repeat(_objects([0.0], [1.0]), 2), NO_EPHEMERIDES)


def test_a_table_of_another_kind_is_refused_by_column() -> None:
    with pytest.raises(BadData, match="the DiaSource table has no column decErr, diaSourceId, raErr"):
        associate(empty("DiaForcedSource", 1), NO_OBJECTS, NO_EPHEMERIDES)
