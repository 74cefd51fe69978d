"""Extreme value theory: the end point of a distribution, estimated from maxima of samples."""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

_LEAST_FIT = 1e-3
"""Probability of the maxima under the distribution that was fitted, below which it is not used."""


def right_end(maxima: Sequence[float]) -> float:
    """Return the right end of the reverse Weibull distribution that fits maxima best.

    It is at least the largest of them, and is the largest where the distribution fits badly.
    """
    values = np.array(maxima)
    largest, spread = float(values.max()), float(np.ptp(values))
    if not spread > 1e-9 * largest:
        return largest
    scaled = (values - largest) / spread
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            shape, end, width = stats.weibull_max.fit(scaled, loc=0.1, scale=0.5)
        except stats.FitError:
            return largest
        fits = stats.kstest(scaled, "weibull_max", (shape, end, width)).pvalue >= _LEAST_FIT
    estimate = largest + float(end) * spread
    return estimate if fits and np.isfinite(estimate) and estimate >= largest else largest
