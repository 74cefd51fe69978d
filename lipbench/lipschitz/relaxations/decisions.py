"""Branching decisions: splits of a search in two, and whether its parts cover the whole."""

from collections.abc import Sequence

Decision = tuple[int, bool]
"""A question, such as on which side of 0 a neuron is, and its answer, such as right of it."""


def cover(paths: Sequence[tuple[Decision, ...]], questions: int) -> bool:
    """Return whether these paths lead to all leaves of one search tree, each of them once.

    At every node there is one question, of those with numbers below `questions`, and both answers.
    """
    left = [(0, list(paths))]
    while left:
        depth, below = left.pop()
        if len(below) == 1 and len(below[0]) == depth:
            continue
        if not below or any(len(path) <= depth for path in below):
            return False
        asked = {path[depth][0] for path in below}
        if len(asked) > 1 or not 0 <= asked.pop() < questions:
            return False
        left += [(depth + 1, [p for p in below if p[depth][1] is yes]) for yes in (True, False)]
    return True
