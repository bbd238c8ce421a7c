import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from payloads.alert_production.ephemerides import OrbitCatalogue
from payloads.alert_production.observatory import observer_at
from payloads.alert_production.ss_sources import ss_sources
from payloads.alert_production.two_body import GAUSS_K, in_plane, orbit_axes
from payloads.imaging.sphere import position_at
from schemas.tables import Table, empty

Matched = tuple[Table, Table, Table]

MJD = 61041.22
KM_S = 149597870.7 / 86400.0


def _orbits() -> Table:
    orbits = empty("mpc_orbits", 2)
    orbits["designation"] = "2031 AA", "2031 AB"
    orbits["q"], orbits["e"], orbits["i"], orbits["node"] = (2.2, 0.8), (0.1, 0.4), (8.0, 25.0), (80.0, 200.0)
    orbits["argperi"], orbits["peri_time"], orbits["epoch_mjd"] = (15.0, 300.0), (61200.0, 60990.0), 61000.0
    orbits["h"] = 17.0
    return orbits


@pytest.fixture
def matched() -> Matched:
    """Sources 0.3 arcsec east and 0.4 north of two predictions, the predictions, and the SSSource rows."""
    predicted = OrbitCatalogue(_orbits()).predict(0.0, 0.0, 180.0, MJD)
    sources = empty("DiaSource", 2)
    sources["diaSourceId"], sources["midpointMjdTai"] = (11, 12), MJD
    sources["ra"], sources["dec"] = position_at(predicted["ra"], predicted["dec"], 0.3, 0.4)
    return sources, predicted, ss_sources(sources, predicted, np.array([1, 2]))


def test_every_column_is_filled(matched: Matched) -> None:
    table = matched[2]
    assert [name for name in table.dtype.names if table.dtype[name].kind == "f" and np.isnan(table[name]).any()] == []
    assert table["designation"].tolist() == ["2031 AA", "2031 AB"]
    assert table["diaSourceId"].tolist() == [11, 12]
    assert table["diaDistanceRank"].tolist() == [1, 2]


def test_offsets_are_observed_less_predicted(matched: Matched) -> None:
    _, predicted, table = matched
    assert table["ephOffsetRa"] == pytest.approx([0.3, 0.3], abs=1e-6)
    assert table["ephOffsetDec"] == pytest.approx([0.4, 0.4], abs=1e-6)
    assert table["ephOffset"] == pytest.approx([0.5, 0.5], abs=1e-6)
    rate = np.hypot(predicted["rate_ra"], predicted["rate_dec"])
    along = (0.3 * predicted["rate_ra"] + 0.4 * predicted["rate_dec"]) / rate
    assert table["ephOffsetAlongTrack"] == pytest.approx(along, abs=1e-6)
    assert np.hypot(table["ephOffsetAlongTrack"], table["ephOffsetCrossTrack"]) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_a_source_ahead_on_the_track_is_not_across_it() -> None:
    predicted = OrbitCatalogue(_orbits()).predict(0.0, 0.0, 180.0, MJD)
    sources = empty("DiaSource", 2)
    sources["midpointMjdTai"] = MJD
    ahead = 1e-4 * predicted["rate_ra"] * 3600.0, 1e-4 * predicted["rate_dec"] * 3600.0
    sources["ra"], sources["dec"] = position_at(predicted["ra"], predicted["dec"], *ahead)
    table = ss_sources(sources, predicted, np.array([1, 1]))
    assert table["ephOffsetAlongTrack"] == pytest.approx(table["ephOffset"], rel=1e-4)
    assert table["ephOffsetCrossTrack"] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_ecliptic_and_galactic_coordinates_are_astropys(matched: Matched) -> None:
    sources, _, table = matched
    sky = SkyCoord(sources["ra"] * u.deg, sources["dec"] * u.deg, frame="icrs")
    galactic, ecliptic = sky.galactic, sky.barycentricmeanecliptic
    assert table["galLon"] == pytest.approx(galactic.l.deg, abs=1e-5)
    assert table["galLat"] == pytest.approx(galactic.b.deg, abs=1e-5)
    assert table["eclLambda"] == pytest.approx(ecliptic.lon.deg, abs=3e-5)  # another obliquity, another frame bias
    assert table["eclBeta"] == pytest.approx(ecliptic.lat.deg, abs=3e-5)


def test_places_and_velocities_in_space_are_those_of_the_orbit(matched: Matched) -> None:
    _, predicted, table = matched
    here = observer_at(MJD)
    for orbit, eph, row in zip(_orbits(), predicted, table, strict=True):
        then = MJD + 32.184 / 86400.0 - eph["topo_range"] / 173.144632674
        x, y, vx, vy = in_plane(orbit["q"], orbit["e"], then - orbit["peri_time"])
        p, q = orbit_axes(*np.radians([orbit["i"], orbit["node"], orbit["argperi"]]))
        helio, velocity = x * p + y * q, vx * p + vy * q
        assert [row[f"helio_{k}"] for k in "xyz"] == pytest.approx(helio, abs=1e-6)
        assert [row[f"helio_v{k}"] for k in "xyz"] == pytest.approx(velocity * KM_S, abs=1e-4)
        assert [row[f"topo_{k}"] for k in "xyz"] == pytest.approx(helio - here.position, abs=1e-6)
        assert [row[f"topo_v{k}"] for k in "xyz"] == pytest.approx((velocity - here.velocity) * KM_S, abs=1e-4)
        assert row["helio_vtot"] ** 2 == pytest.approx(
            (GAUSS_K * KM_S) ** 2 * (2.0 / row["helioRange"] - (1.0 - orbit["e"]) / orbit["q"]), rel=1e-5
        )
        assert row["helioRangeRate"] == pytest.approx(helio @ velocity / row["helioRange"] * KM_S, abs=1e-4)
        topo = helio - here.position
        assert row["topoRangeRate"] == pytest.approx(
            topo @ (velocity - here.velocity) / np.linalg.norm(topo) * KM_S, abs=1e-4
        )


def test_elongation_and_phase_are_angles_of_one_triangle(matched: Matched) -> None:
    table, sun = matched[2], np.linalg.norm(observer_at(MJD).position)
    at_sun = 180.0 - table["elongation"] - table["phaseAngle"]
    assert sun * np.sin(np.radians(at_sun)) == pytest.approx(
        table["topoRange"] * np.sin(np.radians(table["phaseAngle"])), abs=1e-5
    )


def test_an_object_that_stands_still_has_no_track(matched: Matched) -> None:
    sources, predicted, _ = matched
    predicted["rate_ra"] = predicted["rate_dec"] = 0.0
    table = ss_sources(sources, predicted, np.array([1, 1]))
    assert np.isnan(table["ephOffsetAlongTrack"]).all()
    assert table["ephOffset"] == pytest.approx([0.5, 0.5], abs=1e-6)
