import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from payloads.imaging.morphology import grown
from schemas.image import Mask
from tests.payloads.planes import masks, shapes


@given(data=st.data(), shape=shapes(), radius=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_growing_is_a_square_dilation_whatever_the_shape(
    data: st.DataObject, shape: tuple[int, int], radius: int
) -> None:
    mask = data.draw(masks(shape, (Mask.SAT, Mask.BAD, Mask.VIGNETTED)))
    flagged = (mask & (Mask.SAT | Mask.VIGNETTED)) != 0
    expected = binary_dilation(flagged, np.ones((2 * radius + 1, 2 * radius + 1)))
    np.testing.assert_array_equal(grown(mask, Mask.SAT | Mask.VIGNETTED, radius), expected)


def test_growing_what_is_flagged_everywhere_changes_nothing() -> None:
    mask = np.full((30, 20), Mask.NO_DATA, np.uint16)
    assert grown(mask, Mask.NO_DATA, 12).all()
    assert not grown(mask, Mask.SAT, 12).any()
