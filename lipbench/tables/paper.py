"""The numbers that the CLIP paper prints in its Table 1, to be set beside ours.

Source:
    Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural Networks,
    2021, https://arxiv.org/abs/2103.12531, Table 1.
"""

from dataclasses import dataclass

CITATION = "Table 1 of arXiv:2103.12531"


@dataclass(frozen=True)
class PrintedRow:
    """One row of Table 1: accuracies in percent, and the strength of the regulariser."""

    train: float
    test: float
    noise: float
    attack: float
    strength: float


_TABLE_1 = {
    ("mnist", "standard", None): PrintedRow(95.6, 89.8, 71.8, 25.3, 0.0),
    ("mnist", "weight_regularization", 0.95): PrintedRow(93.1, 89.0, 71.4, 25.4, 0.0003),
    ("mnist", "weight_regularization", 0.90): PrintedRow(89.8, 89.7, 71.9, 24.8, 0.0015),
    ("mnist", "weight_regularization", 0.85): PrintedRow(84.8, 87.2, 72.3, 24.9, 0.0031),
    ("mnist", "clip", 0.95): PrintedRow(95.3, 90.7, 70.3, 24.4, 0.01),
    ("mnist", "clip", 0.90): PrintedRow(91.8, 91.6, 78.0, 36.2, 3.91),
    ("mnist", "clip", 0.85): PrintedRow(87.6, 87.2, 74.5, 37.7, 9.82),
    ("fashion_mnist", "standard", None): PrintedRow(98.5, 92.0, 25.7, 1.9, 0.0),
    ("fashion_mnist", "weight_regularization", 0.95): PrintedRow(94.8, 91.2, 26.9, 3.5, 0.0011),
    ("fashion_mnist", "weight_regularization", 0.90): PrintedRow(89.8, 89.6, 28.1, 6.0, 0.0023),
    ("fashion_mnist", "weight_regularization", 0.85): PrintedRow(85.3, 85.4, 34.2, 10.2, 0.0091),
    ("fashion_mnist", "clip", 0.95): PrintedRow(94.6, 91.9, 19.8, 9.1, 0.18),
    ("fashion_mnist", "clip", 0.90): PrintedRow(90.6, 88.9, 23.3, 13.0, 0.74),
    ("fashion_mnist", "clip", 0.85): PrintedRow(85.9, 83.1, 31.9, 14.9, 4.18),
}


def printed_row(dataset: str, method: str, target: float | None) -> PrintedRow | None:
    """Return what the paper prints for a method at a target accuracy, None if nothing."""
    return _TABLE_1.get((dataset, method, target))
