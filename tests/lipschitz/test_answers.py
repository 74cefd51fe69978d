"""What bounds of strangers answer: nothing of it is taken on their word, and it ends nothing."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.liars import liars
from torch import nn

import lipbench
from lipbench.audit.audit import audit
from lipbench.bound import Lipschitz
from lipbench.cli.main import call
from lipbench.lipschitz.answers import Malformed, checked, is_verified, mismatches, read_answer
from lipbench.lipschitz.bracket import Unsound
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.refused import Refused
from lipbench.runs.exits import ExitCode

L2 = Norm(2.0)


class Lying(torch.Tensor):
    """A tensor with an opinion of its own."""

    def __le__(self, other):
        return True


def value(number=2.0, side="upper", **fields):
    return Lipschitz(**{"value": number, "side": side, "norm": L2, "domain": None} | fields)


def a_model():
    # The absolute value: its constant is 1, and the product of its layers 2.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[2].weight.fill_(1)
    return model


MALFORMED = {
    "None": (None, "it returned None, and no Lipschitz"),
    "a float": (2.0, "it returned a float"),
    "a tuple": ((2.0, "upper"), "it returned a tuple"),
    "one alike": (SimpleNamespace(value=2.0, side="upper"), "it returned a SimpleNamespace"),
    "text": (value("2.0"), "its value is a str, and no number"),
    "a tensor": (value(torch.tensor(2.0)), "its value is a Tensor"),
    "a truth": (value(True), "its value is a bool"),
    "complex": (value(2 + 0j), "its value is a complex"),
    "huge": (value(10**400), "cannot be read: OverflowError"),
    "negative": (value(-1.0), "-1.0 is no Lipschitz constant"),
    "another side": (value(side="above"), "its side is one of .* got 'above'"),
    "no side": (value(side=["upper"]), "its side is one of"),
    "another norm": (value(norm=3.0), "norm must be 1, 2 or inf"),
    "no norm": (value(norm=torch.zeros(2)), "cannot be read"),
    "half a box": (value(domain=(0.0,)), "its domain is a pair"),
    "a box of tensors": (value(domain=torch.zeros(2)), "its domain is a pair"),
    "a list of proofs": (value(proof=[torch.zeros(1)]), "its proof is a list, and no mapping"),
    "no proof": (value(proof=None), "its proof is None"),
    "a proof in a list": (value(proof={"u": [1.0]}), "its proof 'u' is a list"),
    "a proof in numpy": (value(proof={"u": np.zeros(1)}), "its proof 'u' is a ndarray"),
    "a proof in float32": (value(proof={"u": torch.zeros(1)}), "'u' is in torch.float32"),
    "a complex proof": (value(proof={"u": torch.zeros(1) + 0j}), "'u' is in torch.complex64"),
    "odd numbers": (value(proof={"u": torch.zeros(1, dtype=torch.uint16)}), "in torch.uint16"),
    "an odd name": (value(proof={"\ud800": torch.zeros(1).double()}), "named by texts"),
    "a number for a name": (value(proof={1: torch.zeros(1).double()}), "named by texts"),
    "a sparse proof": (value(proof={"u": torch.eye(2).double().to_sparse()}), "no dense tensor"),
    "a tensor of its own": (
        value(proof={"u": torch.zeros(1).double().as_subclass(Lying)}),
        "'u' is a Lying, and no plain tensor",
    ),
    "an endless proof": (
        value(proof={"u": torch.zeros(1).double().expand(2**40)}),
        "more than 134,217,728 numbers",
    ),
    "a text of flags": (value(flags="unverified"), "its flags are a tuple of texts"),
    "no flags": (value(flags=(None,)), "its flags are a tuple of texts"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_answer_says_what_it_is(what):
    answer, message = MALFORMED[what]
    with pytest.raises(Malformed, match=message):
        read_answer(answer)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_a_number_that_says_nothing_is_a_refusal(number):
    with pytest.raises(Refused, match="what it proves is not finite"):
        read_answer(value(number))


def test_an_answer_is_read_into_the_cores_own_numbers():
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    read = read_answer(
        value(np.float32(0.5), norm=2, domain=[0, 1], proof={"u": u}, flags=["a;b", "", "a;b"])
    )
    assert (type(read.value), type(read.norm), read.domain) == (float, Norm, (0.0, 1.0))
    assert read.flags == ("a,b",)
    with torch.no_grad():
        u.fill_(7)
    assert not read.proof["u"].requires_grad
    assert float(read.proof["u"]) == 0


@pytest.mark.parametrize(
    ("answer", "side", "message"),
    [
        (value(norm=Norm(1)), "upper", "it speaks of norm 1 on all of space"),
        (value(domain=(0.0, 1.0)), "upper", r"it speaks of norm 2 on \[0, 1\]"),
        (value(side="lower"), "upper", "the side of its value is lower, and that of its class"),
        (value(side="exact"), "upper", "is exact, and that of its class upper"),
        (value(side="upper"), "lower", "is upper"),
        (value(side="lower"), "exact", "exact or upper"),
        (value(side="upper"), "estimate", "is upper"),
    ],
)
def test_an_answer_to_another_question_is_told(answer, side, message):
    (found,) = mismatches(answer, side, L2, None)
    assert __import__("re").search(message, found)


def test_a_search_for_the_constant_may_end_with_an_upper_bound():
    assert mismatches(value(side="upper"), "exact", L2, None) == []


def product_of(network, **fields):
    constants = torch.ones(3, dtype=torch.float64)
    return value(2.0 * (1 + 1e-12), proof={"constants": constants}, **fields)


def test_a_proof_that_holds_proves_also_what_is_called_unverified():
    network = as_network(a_model(), (1,))
    for flags in ((), ("unverified",)):
        found, problems = checked(network, product_of(network, flags=flags))
        assert problems == []
        assert is_verified(found)
    bare, problems = checked(network, value(2.5, flags=("unverified",)))
    assert problems == []
    assert not is_verified(bare)
    _, problems = checked(network, value(2.5))
    assert "has no proof that can be rechecked" in problems[0]
    short = value(1.5, proof={"constants": torch.ones(3).double()}, flags=("unverified",))
    assert checked(network, short)[1]


def test_a_proof_that_cannot_be_checked_is_no_proof():
    network = as_network(a_model(), (1,))
    strange = {"u": torch.zeros(7, 7, dtype=torch.float64), "w": torch.zeros(1).double()}
    with pytest.raises(Malformed, match="its proof is malformed: KeyError: 'v'"):
        checked(network, value(side="lower", proof=strange))


STRANGERS = {
    "small": {},
    "tiny": {"answer": 'said(norm, domain, value=1e-3, flags=("unverified",))'},
    "loose": {"answer": 'said(norm, domain, value=3.0, flags=("unverified",))'},
    "high": {"side": "lower", "answer": 'said(norm, domain, 9.0, "lower", flags=("unverified",))'},
    "witless": {"answer": "said(norm, domain)"},
    "short": {"answer": "said(norm, domain, proof={'constants': torch.ones(3).double()})"},
    "none": {"answer": "None"},
    "number": {"answer": "0.5"},
    "text": {"answer": 'said(norm, domain, "0.5")'},
    "nan": {"answer": "said(norm, domain, math.nan)"},
    "infinite": {"answer": "said(norm, domain, math.inf)"},
    "negative": {"answer": "said(norm, domain, -1.0)"},
    "otherwise": {"answer": "said(Norm(1.0), domain, 0.5)"},
    "elsewhere": {"answer": "said(norm, (0.0, 1.0), 0.5)"},
    "below": {"answer": 'said(norm, domain, 9.0, "lower")'},
    "exactly": {"answer": 'said(norm, domain, 9.0, "exact", flags=("unverified",))'},
    "listed": {"answer": "said(norm, domain, proof=[1])"},
    "lettered": {"answer": 'said(norm, domain, flags="unverified")'},
    "shapeless": {"answer": "said(norm, domain, proof={'multipliers': torch.ones(9).double()})"},
    "failing": {"answer": "1 / 0"},
    "speechless": {"answer": "(_ for _ in ()).throw(Speechless())"},
    "wordy": {"answer": "(_ for _ in ()).throw(ValueError('\\ud800;\\n' * 10**6))"},
    "silent": {"refuses": "''"},
    "leaving": {"answer": "exit()"},
    "shy": {"refuses": "1 / 0"},
    "modest": {"refuses": "(_ for _ in ()).throw(Refused('not this one'))"},
    "mute": {"refuses": "7"},
    "costly": {"cost": "1 / 0"},
    "free": {"cost": "math.nan"},
    "paid": {"cost": "-1.0"},
    "priced": {"cost": "'much'"},
    "fitting": {"within": "3"},
    "tight": {"within": "1 / 0"},
    "sideways": {"side": "sideways"},
}
REASONS = {
    "witless": "has no proof that can be rechecked",
    "short": "but the constants of its steps prove 2",
    "none": "it returned None, and no Lipschitz",
    "number": "it returned a float",
    "text": "its value is a str",
    "nan": "what it proves is not finite.",
    "infinite": "what it proves is not finite.",
    "negative": "-1.0 is no Lipschitz constant",
    "otherwise": "it speaks of norm 1 on all of space, and was asked for norm 2",
    "elsewhere": "it speaks of norm 2 on [0, 1]",
    "below": "the side of its value is lower",
    "exactly": "the side of its value is exact",
    "listed": "its proof is a list",
    "lettered": "its flags are a tuple of texts",
    "shapeless": "its proof is malformed",
    "failing": "it failed with ZeroDivisionError: division by zero",
    "speechless": "it failed with Speechless",
    "wordy": r"it failed with ValueError: \ud800; \ud800; \ud800",
    "silent": "it gives no reason.",
    "leaving": "it failed with SystemExit",
    "shy": "it failed with ZeroDivisionError",
    "modest": "not this one",
    "mute": "its refuses() gives a int",
    "costly": "it failed with ZeroDivisionError",
    "free": "its cost() gives nan",
    "paid": "its cost() gives -1.0",
    "priced": "its cost() gives 'much'",
    "fitting": "its within() gives 3",
    "tight": "it failed with ZeroDivisionError",
    "sideways": "the side of its class is 'sideways'",
}


@pytest.fixture
def strangers(publish):
    publish(*liars(STRANGERS))


def test_whatever_strangers_answer_a_bracket_is_that_of_verified_values(strangers):
    found = lipbench.bracket(a_model(), (1,))
    assert 1 - 1e-6 <= found.lower <= 1 <= found.upper <= 1 + 1e-6
    for name, reason in REASONS.items():
        assert reason in found.refused[name], name
        assert len(found.refused[name]) < 600
        found.refused[name].encode()
    bounds = {bound.name: bound for bound in found.bounds}
    assert not bounds.keys() & REASONS.keys()
    for name in ("small", "tiny", "loose", "high"):
        assert not bounds[name].is_verified
        assert "unverified" in bounds[name].flags
    for name in ("small", "tiny", "high"):
        assert any(flag.startswith("refuted: ") for flag in bounds[name].flags), name
    assert bounds["loose"].flags == ("unverified",)
    assert all(bound.is_verified for name, bound in bounds.items() if name not in STRANGERS)


def test_a_softmax_makes_no_upper_bound_of_a_lower_one(publish):
    """What stands before it is bounded, and the bound counts as one of the whole."""
    publish(
        *liars({"below": {"answer": 'said(norm, domain, 1e-6, "lower", flags=("unverified",))'}})
    )
    found = lipbench.bracket(nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)), (2,))
    assert "the side of its value is lower" in found.refused["below"]
    assert found.lower <= found.upper


def test_a_proof_of_an_unverified_value_is_checked_and_counts(publish):
    proof = "proof={'constants': torch.ones(3).double()}, flags=('unverified',)"
    publish(*liars({"proved": {"answer": f"said(norm, domain, 2.5, {proof})"}}))
    bounds = {bound.name: bound for bound in lipbench.bracket(a_model(), (1,)).bounds}
    assert bounds["proved"].is_verified


def test_verified_values_that_cross_are_unsound_all_the_same(publish, monkeypatch):
    """A check that is wrong itself is what this guards against."""
    publish(
        *liars(
            {"small": {"answer": "said(norm, domain, proof={'constants': torch.ones(3).double()})"}}
        )
    )
    from lipbench.lipschitz import answers

    monkeypatch.setattr(answers, "recheck", lambda network, value: [])
    with pytest.raises(Unsound, match=r"exceeds upper 0\.1"):
        lipbench.bracket(a_model(), (1,))


def test_later_bounds_start_from_proved_values_alone(publish):
    """Witnesses that are none, of any shape, reach no other bound."""
    names = {
        "a_first": {
            "side": "lower",
            "answer": "said(norm, domain, 0.5, 'lower', flags=('unverified',), "
            "proof={'v': torch.zeros(3, 3).double(), 'w': torch.zeros(1).double()})",
        },
        "asking": {
            "side": "lower",
            "cost": "0.5",
            "answer": "said(norm, domain, float(any(k.value == 0.5 for k in known)), 'lower', "
            "flags=('unverified',))",
        },
    }
    publish(*liars(names))
    bounds = {bound.name: bound for bound in lipbench.bracket(a_model(), (1,)).bounds}
    assert bounds["asking"].value == 0


def test_a_bound_that_rewrites_what_it_is_given_changes_no_proof(publish):
    code = "[k.proof[n].fill_(7) for k in known for n in list(k.proof)] and said(norm, domain)"
    publish(*liars({"rewriting": {"side": "lower", "cost": "10.0", "answer": code}}))
    model = a_model()
    network = as_network(model, (1,))
    found = lipbench.bracket(model, (1,))
    assert "bound 'rewriting' changed known: " in found.refused["rewriting"]
    for bound in found.bounds:
        assert checked(network, bound.lipschitz)[1] == [], bound.name


def test_a_value_in_another_norm_is_none_however_well_it_is_proved(publish):
    """The sum of 64 inputs has the constant 64 in the norm inf, and 8 in the norm 2."""
    load = "__import__('lipbench.registry').registry.load('lipbench.bounds', 'product', Bound)"
    answer = f"{load}().compute(network, Norm(2.0), domain)"
    publish(*liars({"euclidean": {"answer": answer}}))
    model = nn.Linear(64, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1)
    found = lipbench.bracket(model, (64,), norm=math.inf)
    assert "it speaks of norm 2" in found.refused["euclidean"]
    assert found.lower == pytest.approx(64)
    assert found.upper == pytest.approx(64)


# Weights that overflow in the middle, of a function that does not.


def test_a_product_that_overflows_is_one_bounds_refusal():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model = model.double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.4, 0.1], [0.2, -0.3]]).double() * 1e200)
        model[2].weight.copy_(torch.tensor([[0.5, 0.5]]).double() * 1e-200)
    found = lipbench.bracket(model, (2,))
    assert found.lower == pytest.approx(0.1 * math.sqrt(10), rel=1e-6)
    assert found.lower <= found.upper <= 0.32
    assert "too large for float64" in found.refused["lipsdp_neuron"]
    assert audit(model, (2,), claims=0.4).verdict == "proved"


# What the audit makes of it.


def test_an_unverified_bound_proves_no_claim_and_ends_no_audit(strangers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))
    lipbench.bracket(a_model(), (1,), time_limit=0)  # which imports all bounds
    honest = lipbench.bracket(model, (4,), time_limit=1)
    # The strangers say 0.001 and 0.1 from above.
    assert 0.1 < honest.lower < 0.99 * honest.upper
    middle = (honest.lower + honest.upper) / 2
    assert audit(model, (4,), claims=middle, time_limit=1).verdict == "open"


NET = """
import torch
from torch import nn

def net():
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
    return model
"""


@pytest.mark.parametrize(
    ("claim", "verdict", "code"),
    [("0.2", "refuted", ExitCode.UNSOUND), ("5.1", "proved", ExitCode.DONE)],
)
def test_the_report_lists_what_does_not_count(
    publish, tmp_path, monkeypatch, capsys, claim, verdict, code
):
    publish(*liars({name: STRANGERS[name] for name in ("small", "loose", "nan", "none")}))
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    assert call(["audit", "net.py:net", "--input-shape", "2", "--claims", claim]) == code
    out = capsys.readouterr().out
    assert f"claim: at most {claim}: {verdict}" in out
    report = json.loads((tmp_path / "audit.json").read_text())
    assert 5 * (1 - 1e-9) <= report["lipschitz_lower"] <= 5 <= report["lipschitz_upper"]
    bounds = {bound["name"]: bound for bound in report["bounds"]}
    for name in ("small", "loose"):
        assert bounds[name]["verified"] is False
        assert "unverified" in bounds[name]["flags"]
        assert any(flag.startswith("refuted: ") for flag in bounds[name]["flags"])
    assert bounds["product"]["verified"] is True
    assert report["refused"]["nan"] == "what it proves is not finite."
    assert "it returned None" in report["refused"]["none"]
    assert "unverified, refuted: " in out
