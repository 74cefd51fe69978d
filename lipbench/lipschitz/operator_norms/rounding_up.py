"""Directed rounding: sums and products of non-negative numbers, never below the exact ones."""

import math


def raised(number: float) -> float:
    """Return the next larger number, for one that was rounded; 0 and 1 are taken as exact."""
    return number if number in (0, 1) else math.nextafter(number, math.inf)


def times(product: float, factor: float) -> float:
    """Return the product; 0 if one of both is 0."""
    if 0 in (product, factor):
        return 0.0
    # Multiplying by 1 is exact: a chain of 1-Lipschitz steps stays at 1.
    return product if factor == 1 else math.nextafter(product * factor, math.inf)


def plus(total: float, term: float) -> float:
    """Return the sum."""
    exact = 0 in (total, term)
    return total + term if exact else math.nextafter(total + term, math.inf)
