"""Confidence intervals of the difference of two methods that share seeds and images."""

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np


def paired_interval(
    differences: Sequence[float], image_variance: float = 0.0, confidence: float = 0.95
) -> tuple[float, float]:
    """Return a confidence interval for the mean difference of two methods.

    Student's t with one degree of freedom less than seeds, on the sum of both variances: that of
    the mean over seeds and that of the mean over images. Both contain the interaction of seeds
    and images, so the interval errs on the wide side. With fewer than two seeds it is all of R.

    Args:
        differences: One difference of accuracies per seed.
        image_variance: Variance of the mean difference due to the choice of test images.
        confidence: Probability with which the interval covers the truth.

    Raises:
        ValueError: If `confidence` is not between 0 and 1 or `image_variance` is negative.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
    if not image_variance >= 0:
        raise ValueError(f"image_variance must not be negative, got {image_variance}.")
    if len(differences) < 2:
        return -inf, inf
    # scipy.special loads ten times faster than scipy.stats.
    from scipy.special import stdtrit

    mean = float(np.mean(differences))
    variance = float(np.var(differences, ddof=1)) / len(differences) + image_variance
    reach = float(stdtrit(len(differences) - 1, (1 + confidence) / 2)) * sqrt(variance)
    return mean - reach, mean + reach


def paired_image_variance(differences: np.ndarray) -> float:
    """Return the variance of a mean difference due to the choice of images.

    Args:
        differences: Difference of outcomes, axes (seeds, images); the images are the same for
            every seed, so the mean over seeds comes first.
    """
    per_image = differences.mean(axis=0)
    return float(per_image.var(ddof=1) / len(per_image)) if len(per_image) > 1 else inf


def unpaired_image_variance(accuracies: Sequence[float], images: int) -> float:
    """Return a bound on that variance where only accuracies are known, one per method.

    The sum of the binomial variances: it exceeds the paired variance whenever images that are
    hard for one method tend to be hard for the other.
    """
    return sum(max(p * (1 - p), 0.0) for p in accuracies) / images


def summary(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of `values` and their standard deviation, None for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    spread = float(np.std(values, ddof=1))
    # Equal numbers whose mean is not representable would else spread by 1e-16.
    return mean, spread if spread > 1e-14 * abs(mean) else 0.0
