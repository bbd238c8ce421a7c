import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from payloads.imaging.morphology import grown
from schemas.image import Mask


@pytest.mark.parametrize("radius", [0, 1, 5])
def test_growing_is_a_square_dilation(radius: int) -> None:
    rng = np.random.default_rng(1)
    mask = rng.choice([0, Mask.CR, Mask.SAT, Mask.SAT | Mask.BAD], (60, 47), p=[0.97, 0.01, 0.01, 0.01]).astype(
        np.uint16
    )
    flagged = (mask & (Mask.SAT | Mask.BAD)) != 0
    expected = binary_dilation(flagged, np.ones((2 * radius + 1, 2 * radius + 1)))
    np.testing.assert_array_equal(grown(mask, Mask.SAT | Mask.BAD, radius), expected)


def test_growing_what_is_flagged_everywhere_changes_nothing() -> None:
    mask = np.full((30, 20), Mask.NO_DATA, np.uint16)
    assert grown(mask, Mask.NO_DATA, 12).all()
    assert not grown(mask, Mask.SAT, 12).any()
