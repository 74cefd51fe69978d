"""lipbench.bracket on whole modules."""

import math

import pytest
import torch
from torch import nn

import lipbench
from lipbench.layers.activations import CURVES
from lipbench.refused import Refused

STRANGER = """
from dataclasses import dataclass
from lipbench.bound import Bound, Lipschitz
from lipbench.norm import Norm

@dataclass(frozen=True, kw_only=True)
class Wrong(Bound):
    side = "upper"
    norms = frozenset([Norm(2.0)])
    def cost(self, network, norm, domain):
        return 0.0
    def compute(self, network, norm, domain, known=(), inputs=None):
        return Lipschitz(value=0.1, side="upper", norm=norm, domain=domain, flags=("unverified",))
"""


@pytest.fixture(name="model")
def _model():
    # The absolute value: its constant is 1, the product 2.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.fill_(1)
    return model


def test_the_absolute_value_is_bracketed(model):
    bracket = lipbench.bracket(model, input_shape=(1,))
    assert bracket.lower == pytest.approx(1, abs=1e-6)
    assert bracket.upper <= 2 * (1 + 1e-9)
    assert bracket.lower <= 1 <= bracket.upper
    sides = {bound.name: bound.side for bound in bracket.bounds}
    assert sides["product"] == "upper"
    assert sides["jacobian"] == sides["pair_ascent"] == "lower"


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_every_norm_and_a_box_are_bracketed(model, norm):
    bracket = lipbench.bracket(model, input_shape=(1,), norm=norm, domain=(0, 1))
    assert bracket.lower == pytest.approx(1, abs=1e-6)
    assert all(bound.norm == norm and bound.domain == (0.0, 1.0) for bound in bracket.bounds)


@pytest.mark.parametrize("kind", CURVES)
def test_no_bound_fails_on_an_activation(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), kind(), nn.Linear(4, 2)).eval()
    bracket = lipbench.bracket(model, input_shape=(3,), domain=(-1, 1), time_limit=0.5)
    assert not any("failed" in reason for reason in bracket.refused.values())
    assert 0.5 * bracket.upper <= bracket.lower <= bracket.upper


def test_a_network_without_a_rule_is_refused_as_a_whole():
    with pytest.raises(Refused, match=r"layer '1' \(Softmin\)"):
        lipbench.bracket(nn.Sequential(nn.Linear(2, 2), nn.Softmin(1)), (2,))


def test_bounds_beyond_the_time_limit_are_listed_as_refused(model):
    bracket = lipbench.bracket(model, input_shape=(1,), domain=(0, 1), time_limit=0)
    assert (0.0, math.inf) == (bracket.lower, bracket.upper)
    inapplicable = ("clever", "lipmip")  # no bound, and none in this norm
    reasons = {name: reason for name, reason in bracket.refused.items() if name not in inapplicable}
    assert all("time limit" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": 3}, "norm must be 1, 2 or inf"),
        ({"domain": (1, 0)}, "a finite pair lo < hi"),
        ({"domain": (0, math.inf)}, "a finite pair lo < hi"),
        ({"domain": (-1e308, 1e308)}, "a finite pair lo < hi"),
        ({"time_limit": math.nan}, "at least 0 seconds, got nan"),
        ({"time_limit": -1}, "at least 0 seconds, got -1"),
        ({"time_limit": "5"}, "at least 0 seconds, got '5'"),
        ({"norm": None}, "norm must be 1, 2 or inf, got None"),
        ({"input_shape": 3}, r"a tuple such as \(1, 28, 28\), got 3"),
        ({"input_shape": (-1,)}, r"got \(-1,\)"),
        ({"model": None}, "a torch.nn.Module, got None"),
    ],
)
def test_what_is_no_question_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        lipbench.bracket(**{"model": model, "input_shape": (1,), **options})


def test_no_limit_is_a_limit_too(model):
    assert lipbench.bracket(model, (1,), time_limit=math.inf).upper == pytest.approx(1, rel=1e-6)


def test_a_bound_that_fails_is_listed_and_the_others_count(model, publish):
    code = STRANGER.replace("return Lipschitz", "return 1 / 0 or Lipschitz")
    publish("failing", {"lipbench.bounds": {"failing": "failing:Wrong"}}, {"failing.py": code})
    bracket = lipbench.bracket(model, (1,))
    assert bracket.refused["failing"] == "it failed with ZeroDivisionError: division by zero"
    assert bracket.upper == pytest.approx(1, rel=1e-6)


def test_what_is_not_finite_is_no_bound_and_no_crossing():
    """The slopes of this function grow without end."""
    bracket = lipbench.bracket(nn.Sequential(nn.Linear(2, 2), nn.CELU(-1.0)), (2,), time_limit=0.3)
    assert bracket.upper == math.inf
    assert bracket.refused["product"] == "what it proves is not finite."
    assert all(math.isfinite(bound.value) for bound in bracket.bounds)


def test_a_strangers_wrong_bound_is_refuted_and_no_number(model, publish):
    publish("stranger", {"lipbench.bounds": {"wrong": "stranger:Wrong"}}, {"stranger.py": STRANGER})
    bracket = lipbench.bracket(model, input_shape=(1,))
    assert bracket.lower <= 1 <= bracket.upper
    (wrong,) = (bound for bound in bracket.bounds if bound.name == "wrong")
    assert wrong.flags[0] == "unverified"
    assert "refuted: lower" in wrong.flags[1]
    assert "exceeds upper 0.1" in wrong.flags[1]


def test_a_broken_plugin_is_listed_and_stops_nothing(model, publish):
    publish("broken", {"lipbench.bounds": {"broken": "broken:B"}}, {"broken.py": "1 / 0"})
    bracket = lipbench.bracket(model, input_shape=(1,))
    assert "ZeroDivisionError" in bracket.refused["broken"]
    assert bracket.upper < 2.1


def test_one_bound_from_each_side_comes_first():
    # A long filter: its upper bounds are cheap, and cheaper than any lower one.
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.ReLU(), nn.Linear(12, 2))
    bracket = lipbench.bracket(model, (1, 8))
    assert [bound.side for bound in bracket.bounds[:2]] == ["upper", "lower"]
