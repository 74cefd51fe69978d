import torch

from lipbench.method_families.neighbour_graph import nearest, random_neighbours


def samples(count=40):
    return torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(0))


def by_hand(points, row, count, candidates):
    others = [other for other in candidates if other != row]
    return sorted(others, key=lambda other: float((points[row] - points[other]).norm()))[:count]


def test_the_nearest_are_found_among_all_others(monkeypatch):
    """In parts, as large sets are."""
    monkeypatch.setattr("lipbench.method_families.neighbour_graph._ROWS", 7)
    points = samples()
    expected = [by_hand(points, row, 3, range(40)) for row in range(40)]
    assert nearest(points, 3).tolist() == expected


def test_the_nearest_are_found_among_candidates():
    points, candidates = samples(), [3, 11, 4, 38, 20]
    found = nearest(points, 4, torch.tensor(candidates)).tolist()
    assert found == [by_hand(points, row, 4, candidates) for row in range(40)]


def test_an_equal_sample_is_a_neighbour():
    points = torch.zeros(3, 2)
    assert all(own not in row for own, row in enumerate(nearest(points, 2).tolist()))


def test_anyone_is_any_other():
    rows = random_neighbours(5, 400, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 400)
    for own, row in enumerate(rows.tolist()):
        assert set(row) == {0, 1, 2, 3, 4} - {own}
