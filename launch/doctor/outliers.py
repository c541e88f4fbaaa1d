"""Values that are much worse than the others, by median and median absolute deviation.

A mean and a standard deviation would be drawn away by the very outlier that is looked for; with half of the values
bad, median and MAD still stand.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

_NORMAL_CONSISTENT = 1.4826  # median absolute deviation × this = standard deviation of a normal distribution
_DEVIATIONS = 5.0
_LEAST_SPREAD = 0.02  # of the median: values that agree by chance do not make an outlier of a hair
_LEAST_LOSS = 0.15  # of the median: less is not worth a node


def low_outliers(values: Mapping[Key, float]) -> dict[Key, float]:
    """Those that are below the median by 5 robust standard deviations and by 15 %, each as a share of the median.

    Of fewer than three nothing can be said.
    """
    if len(values) < 3:
        return {}
    median = statistics.median(values.values())
    spread = _NORMAL_CONSISTENT * statistics.median(abs(value - median) for value in values.values())
    limit = median - max(_DEVIATIONS * max(spread, _LEAST_SPREAD * median), _LEAST_LOSS * median)
    return {key: value / median for key, value in values.items() if value < limit}
