"""World coordinates: a TAN projection with SIP distortion, fast enough for whole catalogues.

FITS Paper II (Calabretta & Greisen 2002, A&A 395, 1077) for TAN; SIP after Shupe et al. 2005. Pixels are 0-based
here, the first pixel's centre at (0, 0); the FITS header's CRPIX is one more. Sky: ICRS, degrees.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.errors import BadData

Floats = NDArray[np.float64]


def _no_distortion() -> Floats:
    return np.zeros((2, 4, 4))


@dataclass(frozen=True, eq=False)
class Wcs:
    """Pixel <-> sky. `cd`: (2, 2) degrees per pixel. `sip`: (2, 4, 4), A and B of u**p * v**q, pixels."""

    crval: tuple[float, float]
    crpix: tuple[float, float]
    cd: Floats
    sip: Floats = field(default_factory=_no_distortion)

    def pixel_to_sky(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        """RA, dec (deg, ICRS) of pixels (0-based), elementwise."""
        u = np.asarray(x, dtype=np.float64) - self.crpix[0]
        v = np.asarray(y, dtype=np.float64) - self.crpix[1]
        du, dv = self._distortion(u, v)
        xi, eta = np.tensordot(self.cd, np.stack([u + du, v + dv]), 1)
        return from_tangent(xi, eta, self.crval)

    def sky_to_pixel(self, ra: ArrayLike, dec: ArrayLike) -> tuple[Floats, Floats]:
        """Pixels (0-based) of RA, dec (deg, ICRS), elementwise; NaN for what lies behind the tangent plane."""
        xi, eta = to_tangent(ra, dec, self.crval)
        u0, v0 = np.tensordot(np.linalg.inv(self.cd), np.stack([xi, eta]), 1)
        u, v = u0, v0
        if self.sip.any():
            for _ in range(9):  # contracts by the distortion's slope, some 1e-2 at the edge: converged to 1e-9 px
                du, dv = self._distortion(u, v)
                u, v = u0 - du, v0 - dv
        return u + self.crpix[0], v + self.crpix[1]

    def _distortion(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        if not self.sip.any():
            return np.zeros_like(u), np.zeros_like(v)
        return np.polynomial.polynomial.polyval2d(u, v, self.sip[0]), np.polynomial.polynomial.polyval2d(
            u, v, self.sip[1]
        )

    @property
    def pixel_scale(self) -> float:
        """Arcsec per pixel at the reference point."""
        return float(np.sqrt(abs(np.linalg.det(self.cd))) * 3600.0)

    def shifted(self, dx: float, dy: float) -> "Wcs":
        """The WCS of a cutout whose pixel (0, 0) is this one's (dx, dy)."""
        return Wcs(self.crval, (self.crpix[0] - dx, self.crpix[1] - dy), self.cd, self.sip)

    def to_header(self) -> dict[str, str | float | int]:
        """FITS cards."""
        suffix = "-SIP" if self.sip.any() else ""
        cards: dict[str, str | float | int] = {
            "CTYPE1": f"RA---TAN{suffix}", "CTYPE2": f"DEC--TAN{suffix}",
            "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
            "CRVAL1": self.crval[0], "CRVAL2": self.crval[1],
            "CRPIX1": self.crpix[0] + 1.0, "CRPIX2": self.crpix[1] + 1.0,
            "CD1_1": float(self.cd[0, 0]), "CD1_2": float(self.cd[0, 1]),
            "CD2_1": float(self.cd[1, 0]), "CD2_2": float(self.cd[1, 1]),
        }  # fmt: skip
        if suffix:
            cards |= {"A_ORDER": 3, "B_ORDER": 3}
            for name, coefficients in zip("AB", self.sip, strict=True):
                for p, q in np.argwhere(coefficients != 0.0):
                    cards[f"{name}_{p}_{q}"] = float(coefficients[p, q])
        return cards

    @classmethod
    def from_header(cls, header: dict[str, str | float | int]) -> "Wcs":
        """From FITS cards with a CD matrix (or CDELT and PC). Raises BadData for another projection."""
        if not str(header.get("CTYPE1", "")).startswith("RA---TAN"):
            raise BadData(f"CTYPE1 is {header.get('CTYPE1')!r}: only TAN and TAN-SIP are read")
        number = {k: float(v) for k, v in header.items() if isinstance(v, int | float)}
        if "CD1_1" in number:
            cd = np.array([[number.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)])
        else:
            pc = np.array([[number.get(f"PC{i}_{j}", float(i == j)) for j in (1, 2)] for i in (1, 2)])
            cd = pc * np.array([[number["CDELT1"]], [number["CDELT2"]]])
        sip = _no_distortion()
        for axis, name in enumerate("AB"):
            for p in range(4):
                for q in range(4 - p):
                    sip[axis, p, q] = number.get(f"{name}_{p}_{q}", 0.0)
        crpix = number["CRPIX1"] - 1.0, number["CRPIX2"] - 1.0
        return cls((number["CRVAL1"], number["CRVAL2"]), crpix, cd, sip)


def to_tangent(ra: ArrayLike, dec: ArrayLike, center: tuple[float, float]) -> tuple[Floats, Floats]:
    """Gnomonic projection (deg) about `center` (RA, dec, deg); NaN beyond 90 deg."""
    a, d = np.radians(np.asarray(ra, dtype=np.float64) - center[0]), np.radians(np.asarray(dec, dtype=np.float64))
    s0, c0 = np.sin(np.radians(center[1])), np.cos(np.radians(center[1]))
    cos_theta = s0 * np.sin(d) + c0 * np.cos(d) * np.cos(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        xi = np.where(cos_theta > 0, np.cos(d) * np.sin(a) / cos_theta, np.nan)
        eta = np.where(cos_theta > 0, (c0 * np.sin(d) - s0 * np.cos(d) * np.cos(a)) / cos_theta, np.nan)
    return np.degrees(xi), np.degrees(eta)


def from_tangent(xi: ArrayLike, eta: ArrayLike, center: tuple[float, float]) -> tuple[Floats, Floats]:
    """RA in [0, 360), dec (deg) of gnomonic coordinates (deg) about `center`."""
    x, y = np.radians(np.asarray(xi, dtype=np.float64)), np.radians(np.asarray(eta, dtype=np.float64))
    s0, c0 = np.sin(np.radians(center[1])), np.cos(np.radians(center[1]))
    denominator = c0 - y * s0
    ra = np.degrees(np.arctan2(x, denominator)) + center[0]
    dec = np.degrees(np.arctan2(s0 + y * c0, np.hypot(x, denominator)))
    return np.mod(ra, 360.0), dec


def separation_arcsec(ra1: ArrayLike, dec1: ArrayLike, ra2: ArrayLike, dec2: ArrayLike) -> Floats:
    """Great circle distance (arcsec) between points (deg), elementwise; the haversine keeps small ones exact."""
    a1, d1, a2, d2 = (np.radians(np.asarray(v, dtype=np.float64)) for v in (ra1, dec1, ra2, dec2))
    h = np.sin((d2 - d1) / 2) ** 2 + np.cos(d1) * np.cos(d2) * np.sin((a2 - a1) / 2) ** 2
    result: Floats = np.degrees(2 * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))) * 3600.0
    return result
