import numpy as np
import scipy.stats

from simulators.camera.noise import Purpose, add_noise, fill_normal, next_bits, stream

MASK = (1 << 64) - 1


def xoshiro(state: list[int]) -> int:
    """xoshiro256++ as its authors write it, in Python's integers."""

    def rotated(x: int, k: int) -> int:
        return ((x << k) | (x >> (64 - k))) & MASK

    result = (rotated((state[0] + state[3]) & MASK, 23) + state[0]) & MASK
    shifted = (state[1] << 17) & MASK
    state[2] ^= state[0]
    state[3] ^= state[1]
    state[1] ^= state[2]
    state[0] ^= state[3]
    state[2] ^= shifted
    state[3] = rotated(state[3], 45)
    return result


def test_the_bits_are_those_of_xoshiro256_plus_plus() -> None:
    state = stream(1, Purpose.READOUT, 7)
    expected = [int(word) for word in state]
    assert [int(next_bits(state)) for _ in range(50)] == [xoshiro(expected) for _ in range(50)]


def test_the_deviates_are_normal_out_to_the_tail() -> None:
    out = np.empty(2_000_000, np.float32)
    fill_normal(stream(2, Purpose.READOUT), out)
    assert scipy.stats.kstest(out, "norm").pvalue > 1e-3
    for sigma in (3.0, 3.4427, 4.0):
        expected = 2.0 * scipy.stats.norm.sf(sigma) * out.size
        assert abs(np.sum(np.abs(out) > sigma) - expected) < 5.0 * expected**0.5
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 4.0 / out.size**0.5


def test_one_purpose_knows_nothing_of_another() -> None:
    one, two = np.empty(1000, np.float32), np.empty(1000, np.float32)
    fill_normal(stream(2, Purpose.READOUT, 5), one)
    fill_normal(stream(2, Purpose.DRIFT, 5), two)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.15


def test_noise_added_to_an_image_is_that_of_its_rows() -> None:
    image = np.ones((3, 64), np.float32)
    add_noise(stream(3, Purpose.TEMPLATE), image, 2.0)
    flat = np.empty(192, np.float32)
    fill_normal(stream(3, Purpose.TEMPLATE), flat)
    np.testing.assert_allclose(image, 1.0 + 2.0 * flat.reshape(3, 64), rtol=1e-6)
