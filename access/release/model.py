"""What the report of a release holds; `summary.json` is this, and `release.html` shows it."""

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Contents(_Part):
    """What was released: how many of each, and the bands with objects."""

    visits: int
    detectors: int
    tracts: int
    patches: int
    objects: int
    forced_sources: int
    light_curves: int
    bands: tuple[str, ...]


class Found(_Part):
    """Sources of the reference in a range of AB magnitudes: how many, the share found, and its 68 % interval.

    The interval is Wilson's (1927, JASA 22, 209).
    """

    mag_min: float
    mag_max: float
    true: int
    share: float
    low: float
    high: float


class Fluxes(_Part):
    """Measured against true fluxes in a range of AB magnitudes, of `n`.

    Median and robust width of the difference, mmag, positive where the measured flux is too faint; of
    (measured - true) / error, where there is an error, median and width.
    """

    mag_min: float
    mag_max: float
    n: int
    bias_mmag: float | None
    scatter_mmag: float | None
    pull: float | None
    pull_width: float | None


class Told(_Part):
    """Stars and galaxies of a range of AB magnitudes that were found: how many, and the shares taken for stars."""

    mag_min: float
    mag_max: float
    stars: int
    galaxies: int
    stars_as_stars: float | None
    galaxies_as_stars: float | None


class FalseObjects(_Part):
    """Objects in a range of S/N, and how many of them are at nothing."""

    snr_min: float
    snr_max: float | None
    objects: int
    false: int


class Repeats(_Part):
    """Constant stars from visit to visit; null where there is too little to say.

    `pa1_mmag`, `am1_mas`: see `access.release.repeated`, of `stars` and `pairs`. `pf1`: share of these stars' fluxes
    that are off by more than PA2. `chi2_dof`: median of all stars, and `pull_width`: 1 if the errors are right.
    `zero_point_mmag`: scatter of the visit-detectors' median offsets. `forced_bias_mmag`: of bright stars' mean forced
    fluxes against the true ones.
    """

    stars: int
    pa1_mmag: float | None
    pf1: float | None
    chi2_dof: float | None
    pull_width: float | None
    zero_point_mmag: float | None
    forced_bias_mmag: float | None
    pairs: int
    am1_mas: float | None


class Band(_Part):
    """A band. What a reference is needed for is null, or an empty list, without one.

    `visits`: the median over patches; `depth_mag`: 5 sigma of a point source, the same. `stars_alone` and
    `galaxies_alone`: those without neighbours. `stars_50_mag`, `galaxies_50_mag`: where half of them are found; null
    where more are in every bin. `ra_mas`, `dec_mas`: median offsets of bright stars alone, `position_rms_mas`,
    `position_width_mas`: rms and robust width of one coordinate about them. `star_bias_mmag` and
    `galaxy_bias_mmag`: median of measured (PSF, Kron) against true fluxes, of bright ones alone.
    """

    band: str
    visits: int
    depth_mag: float | None
    objects: int
    stars: list[Found]
    galaxies: list[Found]
    stars_alone: list[Found]
    galaxies_alone: list[Found]
    stars_50_mag: float | None
    galaxies_50_mag: float | None
    ra_mas: float | None
    dec_mas: float | None
    position_rms_mas: float | None
    position_width_mas: float | None
    star_bias_mmag: float | None
    galaxy_bias_mmag: float | None
    star_fluxes: list[Fluxes]
    galaxy_fluxes: list[Fluxes]
    told_apart: list[Told]
    repeats: Repeats


class Missing(_Part):
    """What could not be made: of which step, which data id, why."""

    step: str
    data_id: str
    why: str


class Summary(_Part):
    """A release. `reference`: the name of what it was held to; "" for nothing."""

    name: str
    reference: str
    contents: Contents
    bands: list[Band]
    false: list[FalseObjects]
    missing: list[Missing]
