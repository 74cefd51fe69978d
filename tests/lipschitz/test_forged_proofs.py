"""Forged proofs: values whose number, norm, domain, side, proof or network was tampered with."""

import math
import random
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from support.bounds import bound
from support.nets import random_network
from torch import nn

import lipbench
from lipbench.bound import Lipschitz
from lipbench.lipschitz.exact.incumbent import incumbent
from lipbench.lipschitz.proof_check import recheck
from lipbench.lipschitz.softmax_end import ending
from lipbench.networks.network import Network, as_network
from lipbench.norm import NORMS, Norm
from lipbench.refused import Refused

BOXES = [None, (0.0, 1.0), (-1.0, 2.0)]
CHEAP = {
    "jacobian": {"points": 4},
    "pair_ascent": {"points": 4, "pairs": 2, "steps": 2},
    "lipbab": {},
    "lipmip": {},
    "product": {},
    "tight_layers": {},
    "liplt": {},
    "fastlip": {},
    "seqlip": {},
    "recurjac": {},
    "local_l2": {},
    "lipsdp_neuron": {},
    "eclipse_fast": {},
    "jacobian_bound": {"nodes": 20},
    "bisection": {"parts": 40},
    "lipopt": {"most_terms": 2000},
    "gram": {},
}
"""A bound for each kind of proof, with budgets that take milliseconds."""


def dense(seed, activation, widths=(2, 3, 2)):
    return random_network(seed, widths, activation).double()


def ones():
    model = nn.Sequential(nn.Linear(64, 1, bias=False)).double()
    model[0].weight.data.fill_(1.0)
    return model


def convolution():
    torch.manual_seed(0)
    layers = nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).double()


MODELS = {
    "relu": (lambda: dense(0, nn.ReLU), (2,)),
    "of the same shape": (lambda: dense(1, nn.ReLU), (2,)),
    "deeper": (lambda: dense(2, nn.ReLU, (2, 3, 3, 2)), (2,)),
    "sigmoid": (lambda: dense(3, nn.Sigmoid), (2,)),
    "maxmin": (lambda: nn.Sequential(nn.Linear(2, 4), lipbench.MaxMin(), nn.Linear(4, 2)), (2,)),
    "convolution": (convolution, (1, 3)),
    "softmax": (lambda: nn.Sequential(*dense(4, nn.ReLU), nn.Softmax(dim=1)), (2,)),
    "ones": (ones, (64,)),
}


@dataclass(frozen=True)
class Genuine:
    """A value as a bound gave it."""

    model: str
    bound: str
    network: Network
    value: Lipschitz


def computed(name, options, network, norm, box):
    """Return a value, None if the bound does not cover the network."""
    plugin, end = bound(name, **options), ending(network)
    whole = end is None or plugin.side == "lower"
    subject = network if whole else end.before
    if norm not in plugin.norms:
        return None
    try:
        if plugin.refuses(subject, norm, box):
            return None
        value = plugin.compute(subject, norm, box)
    except Refused:
        return None
    return value if whole else end.behind(value)


@cache
def genuine(models=tuple(MODELS), boxes=tuple(BOXES)):
    torch.manual_seed(0)
    found = []
    for model in models:
        make, shape = MODELS[model]
        network = as_network(make(), shape)
        for name, options in CHEAP.items():
            for norm in sorted(NORMS):
                for box in boxes:
                    value = computed(name, options, network, norm, box)
                    if value is not None and math.isfinite(value.value):
                        found.append(Genuine(model, name, network, value))
    return found


def inside(inner, outer):
    return outer is None or (inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1])


class Truth:
    """What is known of the constants of networks, by values that prove it together."""

    def __init__(self, known):
        self.least, self.most = defaultdict(float), defaultdict(lambda: math.inf)
        for entry in known:
            value, key = entry.value, (entry.model, float(entry.value.norm))
            beside = incumbent(entry.network, value) if value.side != "lower" else None
            for each in (value, beside):
                if each is not None and each.least:
                    place = (*key, each.domain)
                    self.least[place] = max(self.least[place], each.least)
            if value.side != "lower":
                place = (*key, value.domain)
                self.most[place] = min(self.most[place], value.value)

    def allows(self, model, value):
        """Return whether a value is true, as far as is known."""
        key = model, float(value.norm)
        if value.side in ("upper", "exact"):
            known = [self.least[*key, box] for box in BOXES if inside(box, value.domain)]
            if not value.value >= max(known, default=0.0) * (1 - 2e-9):
                return False
        if value.side in ("lower", "exact"):
            known = [self.most[*key, box] for box in BOXES if inside(value.domain, box)]
            return value.value <= min(known, default=math.inf) * (1 + 2e-9)
        return True


FACTORS = (1 - 1e-6, 0.9, 0.5, 1.1, 1 + 1e-6, 0.0, -1.0, 1e-300, math.nan, math.inf)


def other_number(rng, entry, value, known):
    return entry, replace(value, value=value.value * rng.choice(FACTORS))


def other_norm(rng, entry, value, known):
    return entry, replace(value, norm=rng.choice(sorted(NORMS)))


def other_domain(rng, entry, value, known):
    boxes = [*BOXES, (0.25, 0.5), (-5.0, 5.0), (1.0, 0.0), (0.0, math.nan), (0.0, math.inf)]
    return entry, replace(value, domain=rng.choice(boxes))


def other_side(rng, entry, value, known):
    return entry, replace(value, side=rng.choice(["upper", "lower", "exact"]))


def other_network(rng, entry, value, known):
    return rng.choice(known), value


def other_proof(rng, entry, value, known):
    return entry, replace(value, proof=rng.choice(known).value.proof)


def two_proofs(rng, entry, value, known):
    other = rng.choice([each for each in known if each.model == entry.model])
    return entry, replace(value, proof={**other.value.proof, **value.proof})


def less_proof(rng, entry, value, known):
    left = sorted(value.proof)
    kept = rng.sample(left, max(0, len(left) - 1))
    return entry, replace(value, proof={name: value.proof[name] for name in kept})


def unverified(rng, entry, value, known):
    return entry, replace(value, flags=("unverified",))


def scaled(tensor, rng):
    return (tensor * rng.choice([0.5, 0.9, 1 - 1e-6, 2])).to(tensor.dtype)


def shuffled(tensor, rng):
    numbers = list(range(tensor.numel()))
    rng.shuffle(numbers)
    return tensor.flatten()[torch.tensor(numbers, dtype=torch.int64)].view_as(tensor)


def with_entry(number):
    def change(tensor, rng):
        changed = tensor.clone() if isinstance(number, int) else tensor.double().clone()
        if changed.numel():
            place = rng.randrange(changed.numel())
            step = rng.choice([1, -1]) * number
            changed.view(-1)[place] = changed.view(-1)[place].item() + step
        return changed

    return change


CHANGES = [
    scaled,
    shuffled,
    with_entry(1),
    with_entry(math.nan),
    with_entry(math.inf),
    lambda tensor, rng: -tensor.double(),
    lambda tensor, rng: torch.zeros_like(tensor),
    lambda tensor, rng: tensor.unsqueeze(0),
    lambda tensor, rng: tensor[:-1] if tensor.ndim else tensor.flatten()[:0],
    lambda tensor, rng: torch.cat([tensor, tensor]) if tensor.ndim else tensor.expand(3),
    lambda tensor, rng: torch.full_like(tensor, 2**40 if not tensor.is_floating_point() else 1e300),
    lambda tensor, rng: tensor.to(rng.choice([torch.float32, torch.int64, torch.complex128])),
    lambda tensor, rng: tensor.tolist(),
    lambda tensor, rng: tensor.to("meta"),
    lambda tensor, rng: tensor.double().requires_grad_(),
]


def other_tensor(rng, entry, value, known):
    entries = value.proof.items()
    tensors = {
        name: tensor
        for name, tensor in entries
        if isinstance(tensor, torch.Tensor) and not (tensor.is_meta or tensor.is_complex())
    }
    # So many nodes of a search are as good as endless, and prove no less.
    names = sorted(name for name in tensors if not name.endswith("nodes"))
    if not names:
        return entry, value
    name = rng.choice(names)
    changed = rng.choice(CHANGES)(value.proof[name].detach().clone(), rng)
    return entry, replace(value, proof={**value.proof, name: changed})


FORGERIES = [
    other_number,
    other_norm,
    other_domain,
    other_side,
    other_network,
    other_proof,
    two_proofs,
    less_proof,
    unverified,
    other_tensor,
    other_tensor,
    other_tensor,
]


def forge(count, seed, known):
    """Return how many of so many values that were tampered with are accepted, all of them true."""
    rng, truth, accepted = random.Random(seed), Truth(known), 0
    for _ in range(count):
        entry = rng.choice(known)
        value = entry.value
        steps = [rng.choice(FORGERIES) for _ in range(rng.randint(1, 2))]
        for step in steps:
            entry, value = step(rng, entry, value, known)
        if recheck(entry.network, value):
            continue
        accepted += 1
        says = [step.__name__ for step in steps]
        assert "unverified" in value.flags or truth.allows(entry.model, value), (
            f"{value.side} {value.value} in norm {value.norm} on {value.domain} of {entry.model} "
            f"is accepted after {says}, with {sorted(value.proof)}"
        )
    return accepted


def test_genuine_proofs_hold():
    known = genuine(("relu", "maxmin"))
    kinds = {name for entry in known for name in entry.value.proof}
    assert {"u", "closed", "parts", "constants", "claims", "reach", "entries", "factors"} <= kinds
    assert {"recursive_entries", "varying_reach", "multipliers", "cases", "halvings"} <= kinds
    for entry in known:
        assert recheck(entry.network, entry.value) == []


def test_no_forged_proof_is_accepted_unless_it_is_true():
    known = genuine(("relu", "of the same shape", "convolution", "softmax"), (None, (0.0, 1.0)))
    assert forge(600, 0, known) > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_no_forged_proof_is_accepted_unless_it_is_true_often(seed):
    assert forge(2000, seed, genuine()) > 200


@pytest.mark.parametrize(
    "name", ["lipsdp_neuron", "eclipse_fast", "seqlip", "tight_layers", "local_l2"]
)
def test_a_proof_of_one_norm_proves_nothing_in_another(name):
    """64 ones: 8 in l2, and 64 in l-infinity."""
    network = as_network(ones(), (64,))
    box = (0.0, 1.0) if name == "local_l2" else None
    value = computed(name, {}, network, Norm(2), box)
    assert recheck(network, value) == []
    for norm in (1, math.inf):
        (violation,) = recheck(network, replace(value, norm=Norm(norm)))
        assert "another norm" in violation.message


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("share", [1e-6, 0.1])
def test_a_lowered_upper_bound_and_a_raised_lower_one_are_found(name, share):
    for entry in genuine(("relu", "convolution"), (None, (0.0, 1.0))):
        value = entry.value
        if entry.bound == name and value.value:
            factor = 1 + share if value.side == "lower" else 1 - share
            assert recheck(entry.network, replace(value, value=value.value * factor))


def test_a_part_that_is_no_number_is_not_lost_among_others():
    """Of many parts of a box one with NaN bounds: the largest of them is no number."""
    network = as_network(dense(0, nn.ReLU), (2,))
    value = computed("bisection", {"parts": 40}, network, Norm(2), (0.0, 1.0))
    deep = torch.tensor([[10**12, 0]], dtype=torch.int64)
    for rows in (deep, value.proof["halvings"].double(), value.proof["halvings"][1:]):
        assert recheck(network, replace(value, proof={"halvings": rows}))
