"""Random numbers as pure functions."""

import numpy as np
from scipy.stats import kstest

from inference.randomness import Purpose, SequenceKey, gumbels, uniforms


def test_every_argument_makes_another_stream() -> None:
    streams = [
        uniforms(Purpose.LEVEL, 4, SequenceKey(0, 0)),
        uniforms(Purpose.SUBSET, 4, SequenceKey(0, 0)),
        uniforms(Purpose.LEVEL, 4, SequenceKey(1, 0)),
        uniforms(Purpose.LEVEL, 4, SequenceKey(0, 1)),
        uniforms(Purpose.LEVEL, 4, SequenceKey(0, 0), step=1),
        uniforms(Purpose.LEVEL, 4, SequenceKey(0, 0), position=1),
        uniforms(Purpose.LEVEL, 4, SequenceKey(2**64 - 1, 0)),
    ]
    assert len(np.unique(np.concatenate(streams))) == 4 * len(streams)
    assert np.array_equal(streams[0], uniforms(Purpose.LEVEL, 4, SequenceKey(0, 0)))


def test_a_longer_stream_begins_like_a_shorter_one() -> None:
    key = SequenceKey(3, 5)
    assert np.array_equal(uniforms(Purpose.REVEAL, 50, key)[:9], uniforms(Purpose.REVEAL, 9, key))


def test_numbers_are_uniform_and_inside_the_open_interval() -> None:
    numbers = uniforms(Purpose.LEVEL, 20000, SequenceKey(0, 0))
    assert kstest(numbers, "uniform").pvalue > 1e-3
    assert numbers.min() > 0
    assert numbers.max() < 1
    first = np.array([uniforms(Purpose.LEVEL, 1, SequenceKey(0, n))[0] for n in range(5000)])
    assert kstest(first, "uniform").pvalue > 1e-3  # across sequences too


def test_gumbel_numbers_have_their_distribution() -> None:
    assert kstest(gumbels(20000, SequenceKey(0, 0), 0, 0), "gumbel_r").pvalue > 1e-3
