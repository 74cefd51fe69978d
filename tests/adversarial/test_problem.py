import math

import torch

from lipbench.adversarial.draws import Draws
from lipbench.adversarial.problem import Problem
from lipbench.adversarial.queries import Counted, Lot
from lipbench.norm import Norm
from lipbench.threat import Threat


def problem(**fields):
    radii = torch.tensor([0.1, 0.2, 0.3])
    return Problem(
        **{
            "model": lambda x: x,
            "inputs": torch.arange(6.0).view(3, 2),
            "labels": torch.tensor([7, 8, 9]),
            "threat": Threat(norm=Norm(math.inf), epsilon=radii, domain=None),
            **fields,
        }
    )


def test_a_part_has_what_belongs_to_its_samples_in_their_order():
    lot = Lot(
        owner=torch.tensor([0, 0, 1]),
        index=torch.tensor([0, 1, 0]),
        draws=[Draws(torch.Generator(), 2)],
    )
    subset = problem(lot=lot).only(torch.tensor([2, 0, 2]))
    assert len(subset) == 3
    assert subset.inputs.tolist() == [[4, 5], [0, 1], [4, 5]]
    assert subset.labels.tolist() == [9, 7, 9]
    assert torch.equal(subset.threat.epsilon, torch.tensor([0.3, 0.1, 0.3]))
    assert subset.threat.domain is None
    assert subset.lot.owner.tolist() == [1, 0, 1]
    assert subset.lot.index.tolist() == [0, 0, 0]
    assert subset.lot.draws == lot.draws


def test_the_model_of_a_part_charges_its_samples():
    counted = Counted(lambda x: x, 3)
    subset = problem(model=counted).only(torch.tensor([2, 0]))
    subset.model(subset.inputs)
    assert counted.queries.tolist() == [1, 0, 1]


def test_other_radii_change_nothing_else():
    whole = problem()
    moved = whole.within(torch.tensor([1.0, 2.0, 3.0]))
    assert moved.threat.epsilon.tolist() == [1, 2, 3]
    assert (moved.threat.norm, moved.threat.domain) == (whole.threat.norm, None)
    assert moved.inputs is whole.inputs
    assert whole.threat.epsilon[0] < 1
