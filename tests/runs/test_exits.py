import pytest

from lipbench.runs.exits import ExitCode, summarise


def test_the_last_line_counts_the_cells_and_names_the_code():
    line, code = summarise({"done": 47, "failed": 2, "nan": 0})
    assert line == "lipbench: 47 done, 2 failed -> exit 3"
    assert code == 3


@pytest.mark.parametrize(
    ("counts", "more", "code"),
    [
        ({"done": 3}, {}, 0),
        ({}, {"error": "disk full"}, 1),
        ({"done": 1, "nan": 1}, {}, 3),
        ({"done": 1, "running": 1}, {}, 4),
        ({}, {}, 5),
        ({"done": 1}, {"violations": 1}, 6),
        ({"done": 1}, {"signal": ExitCode.INTERRUPTED}, 130),
        ({"done": 1}, {"signal": ExitCode.TERMINATED}, 143),
        ({"failed": 1, "running": 1}, {}, 3),
        ({"failed": 1}, {"violations": 1}, 6),
        ({"failed": 1}, {"violations": 1, "error": "x"}, 1),
        ({"failed": 1}, {"violations": 1, "error": "x", "signal": ExitCode.TERMINATED}, 143),
    ],
)
def test_of_several_reasons_the_gravest_gives_the_code(counts, more, code):
    line, given = summarise(counts, **more)
    assert given == code
    assert line.endswith(f"-> exit {code}")
