"""Whether decisions leave nothing out."""

import pytest

from lipbench.lipschitz.relaxations.decisions import cover


@pytest.mark.parametrize(
    ("paths", "whole"),
    [
        ([()], True),
        ([((2, True),), ((2, False),)], True),
        ([((2, True), (0, True)), ((2, True), (0, False)), ((2, False),)], True),
        ([], False),
        ([(), ()], False),
        ([((2, True),)], False),
        ([((2, True),), ((2, True),), ((2, False),)], False),
        ([((2, True),), ((2, False),), ()], False),
        ([((2, True),), ((1, False),)], False),
        ([((3, True),), ((3, False),)], False),
        ([((-1, True),), ((-1, False),)], False),
    ],
)
def test_parts_are_all_there_if_each_question_has_both_answers(paths, whole):
    assert cover(paths, 3) is whole
