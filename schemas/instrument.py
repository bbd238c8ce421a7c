"""Cameras: focal plane, rafts, detectors, amplifiers, filters.

Geometry: LSSTCam has 21 science rafts of 3 x 3 CCDs with 10 um pixels (0.2 arcsec), rafts 127 mm and
CCDs 42.25 mm apart, and two vendors' formats, e2v and ITL, each read by 16 amplifiers (lsstcam.lsst.io). Every raft
is taken as upright.
"""

from dataclasses import dataclass, field
from functools import cache, cached_property

from schemas.errors import BadData

PIXEL_MM = 0.010
PIXEL_ARCSEC = 0.2
_RAFT_PITCH_MM, _CCD_PITCH_MM = 127.0, 42.25
_ITL_RAFTS = frozenset({"R01", "R02", "R03", "R10", "R20", "R41", "R42", "R43"})
_SCIENCE_RAFTS = tuple(
    f"R{row}{column}" for row in range(5) for column in range(5) if not (row in {0, 4} and column in {0, 4})
)

BANDS = ("u", "g", "r", "i", "z", "y")
PHYSICAL_FILTERS = {"u_24": "u", "g_6": "g", "r_57": "r", "i_39": "i", "z_20": "z", "y_10": "y"}
"""LSSTCam's filters, by the name that `nextVisit` and the raw's header carry -> band."""


@dataclass(frozen=True)
class Format:
    """A vendor's CCD: 16 amplifier segments in 2 rows of 8, each with serial prescan and both overscans, pixels."""

    vendor: str
    amp_width: int
    amp_height: int
    prescan: int
    serial_overscan: int
    parallel_overscan: int

    @property
    def width(self) -> int:
        """Columns of the assembled detector."""
        return 8 * self.amp_width

    @property
    def height(self) -> int:
        """Rows of the assembled detector."""
        return 2 * self.amp_height

    @property
    def raw_shape(self) -> tuple[int, int, int]:
        """(16, rows, columns) of a raw with its prescan and overscans."""
        rows = self.amp_height + self.parallel_overscan
        return 16, rows, self.prescan + self.amp_width + self.serial_overscan


E2V = Format("E2V", 512, 2002, 10, 54, 46)
ITL = Format("ITL", 509, 2000, 3, 64, 48)


@dataclass(frozen=True)
class Amplifier:
    """One sixteenth of a detector: where its segment lies in the assembled image, and from which corner it is read.

    `x0`, `y0` is the segment's lower left pixel in the assembled image (0-based). In the raw, row 0 and the
    first column after the prescan are the pixels nearest the readout corner; `flip_x` and `flip_y` say that
    raw columns, rows run against the assembled image's.
    """

    index: int
    name: str
    x0: int
    y0: int
    flip_x: bool
    flip_y: bool


@dataclass(frozen=True)
class Detector:
    """A CCD in its focal plane. `center_mm`: focal plane position of its centre (x, y)."""

    id: int
    name: str
    raft: str
    format: Format
    center_mm: tuple[float, float]

    @cached_property
    def amplifiers(self) -> tuple[Amplifier, ...]:
        """C10..C17 along the top (read at the top edge), C07..C00 along the bottom (read at the bottom edge)."""
        form = self.format
        top = [Amplifier(i, f"C1{i}", i * form.amp_width, form.amp_height, flip_x=True, flip_y=True) for i in range(8)]
        bottom = [
            Amplifier(8 + i, f"C0{7 - i}", (7 - i) * form.amp_width, 0, flip_x=form == ITL, flip_y=False)
            for i in range(8)
        ]
        return (*top, *bottom)

    @property
    def center_arcsec(self) -> tuple[float, float]:
        """Field position of its centre, arcsec along the focal plane's x and y."""
        scale = PIXEL_ARCSEC / PIXEL_MM
        return self.center_mm[0] * scale, self.center_mm[1] * scale


@dataclass(frozen=True)
class Camera:
    """A focal plane: its detectors, and the filters that it carries."""

    name: str
    detectors: tuple[Detector, ...]
    filters: dict[str, str] = field(default_factory=lambda: dict(PHYSICAL_FILTERS))

    @cached_property
    def _by_id(self) -> dict[int, Detector]:
        return {detector.id: detector for detector in self.detectors}

    def __getitem__(self, detector: int) -> Detector:
        """The detector of that id. Raises BadData if the camera has none."""
        if detector not in self._by_id:
            raise BadData(f"{self.name} has no detector {detector}")
        return self._by_id[detector]

    def select(self, names: str) -> tuple[Detector, ...]:
        """Detectors named by a comma-separated list of ids, names (`R22_S11`), rafts (`R22`) or `all`, in id order.

        Raises BadData naming the part that fits none.
        """
        chosen: dict[int, Detector] = {}
        for part in filter(None, (p.strip() for p in names.split(","))):
            found = [d for d in self.detectors if part in {"all", str(d.id), d.name, d.raft}]
            if not found:
                raise BadData(f"{self.name} has no detector or raft {part!r}")
            chosen.update((d.id, d) for d in found)
        if not chosen:
            raise BadData(f"no detector named in {names!r}")
        return tuple(chosen[i] for i in sorted(chosen))

    def band_of(self, physical_filter: str) -> str:
        """Band of a filter name. Raises BadData if the camera carries no such filter."""
        if physical_filter not in self.filters:
            raise BadData(f"{self.name} has no filter {physical_filter!r} (it has {', '.join(self.filters)})")
        return self.filters[physical_filter]


def _lsstcam_detectors() -> tuple[Detector, ...]:
    detectors: list[Detector] = []
    for raft in _SCIENCE_RAFTS:
        form = ITL if raft in _ITL_RAFTS else E2V
        y_raft, x_raft = (int(digit) - 2 for digit in raft[1:])
        for sensor in range(9):
            row, column = divmod(sensor, 3)
            center = (
                x_raft * _RAFT_PITCH_MM + (column - 1) * _CCD_PITCH_MM,
                y_raft * _RAFT_PITCH_MM + (row - 1) * _CCD_PITCH_MM,
            )
            detectors.append(Detector(len(detectors), f"{raft}_S{row}{column}", raft, form, center))
    return tuple(detectors)


@cache
def camera(name: str) -> Camera:
    """The camera of an instrument name (`LSSTCam` or `LATISS`). Raises BadData if there is none."""
    if name == "LSSTCam":
        return Camera(name, _lsstcam_detectors())
    if name == "LATISS":
        return Camera(name, (Detector(0, "RXX_S00", "RXX", ITL, (0.0, 0.0)),))
    raise BadData(f"no instrument {name!r} (there are LSSTCam, LATISS)")
