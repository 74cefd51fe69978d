import pytest
import torch

from lipbench.adversarial.draws import Draws
from lipbench.adversarial.queries import Counted, Lot, OfSamples, numbers, on_rows


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_sample_gets_the_same_whoever_is_beside_it(kind):
    whole = Draws(generator(), 5).take(kind, 0, (3,), torch.arange(5))
    some = Draws(generator(), 5).take(kind, 0, (3,), torch.tensor([4, 1]))
    assert torch.equal(some, whole[[4, 1]])


def test_another_number_kind_or_generator_is_another_draw():
    def take(seed=0, kind="uniform", number=0):
        return Draws(generator(seed), 4).take(kind, number, (2,), torch.arange(4))

    first = take()
    assert torch.equal(first, take())
    others = [take(seed=1), take(kind="normal"), take(number=1)]
    assert not any(torch.equal(first, other) for other in others)


def test_what_is_not_kept_is_drawn_again_alike():
    """Two draws of 20 million numbers are more than are kept."""
    draws = Draws(generator(), 20)
    first = draws.take("uniform", 0, (10**6,), torch.tensor([7]))
    draws.take("uniform", 1, (10**6,), torch.tensor([7]))
    assert torch.equal(draws.take("uniform", 0, (10**6,), torch.tensor([7])), first)


def test_the_samples_of_a_model_have_numbers_of_their_networks():
    draws = [Draws(generator(seed), 3) for seed in (0, 1)]
    lot = Lot(owner=torch.tensor([0, 0, 1, 1]), index=torch.tensor([0, 2, 0, 2]), draws=draws)
    counted = Counted(lambda x: x, 4, lot)
    source = numbers(on_rows(counted, torch.tensor([3, 1])), generator(9), 5)
    assert isinstance(source, OfSamples)
    expected = [draws[owner].take("normal", 5, (2,), torch.tensor([2])) for owner in (1, 0)]
    assert torch.equal(source.draw("normal", (2,)), torch.cat(expected))


def test_a_model_without_a_lot_draws_from_the_generator():
    rng = generator()
    assert numbers(Counted(lambda x: x, 4), rng, 0) is rng
    assert numbers(lambda x: x, rng, 0) is rng
