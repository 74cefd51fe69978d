"""`lipbench audit` and its parts on networks of strangers."""

import json
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipbench.audit import foreign_network
from lipbench.audit.audit import Labelled, audit, labelled
from lipbench.bound import Lipschitz
from lipbench.cli.main import call
from lipbench.lipschitz.proof_check import recheck
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.runs.exits import ExitCode
from lipbench.storage.tensors import read_tensors

NETS = '''
import torch
from torch import nn


class Ramp(nn.Module):
    """The absolute value, whose constant is 1."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 2, bias=False)
        self.last = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            self.last.weight.fill_(1)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def thin():
    """Return relu(3x - b) - relu(c - 5x), whose kinks lie between two neighbours in float64."""
    layers = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[3], [-5]]))
        layers[0].bias.copy_(torch.tensor([-3 - 2.0**-51, 5 + 2.0**-50], dtype=torch.float64))
        layers[2].weight.copy_(torch.tensor([[1, -1]]))
    return layers


def digits():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def trained_mode():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))


def softmin():
    return nn.Sequential(nn.Linear(2, 2), nn.Softmin(1))


def squashed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 10), nn.Softmin(1))


class Signed(nn.Module):
    """The absolute value twice."""

    def forward(self, x):
        return torch.cat([x, x], dim=1) * torch.sign(x)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Halved(nn.Module):
    """A layer that says what it is."""

    def forward(self, x):
        return torch.lerp(x, torch.zeros_like(x), 0.5)

    def explain(self):
        half = nn.Linear(2, 2, bias=False).double()
        with torch.no_grad():
            half.weight.copy_(torch.eye(2) / 2)
        return half


def needy(width):
    return nn.Linear(width, 1)


def broken():
    raise RuntimeError("no such layer")


number = 3
made = digits()
'''


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    return tmp_path


@pytest.fixture
def lip(capsys):
    def run(*arguments):
        code = call(["audit", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("claim", "verdict", "code"),
    [("0.9", "refuted", ExitCode.UNSOUND), ("2.1", "proved", ExitCode.DONE)],
)
def test_a_claim_is_refuted_with_a_pair_or_proved(lip, here, claim, verdict, code):
    got, out, err = lip("nets:Ramp", "--input-shape", "1", "--claims", claim)
    assert (got, err) == (code, "")
    assert f"claim: at most {claim}: {verdict}" in out
    report = json.loads((here / "audit.json").read_text())
    assert report["claim"]["verdict"] == verdict
    assert report["lipschitz_lower"] <= 1 <= report["lipschitz_upper"]
    witness = report["claim"]["witness"]
    if verdict == "refuted":
        u, v = torch.tensor(witness["u"]), torch.tensor(witness["v"])
        assert float((u.abs() - v.abs()).norm() / (u - v).norm()) > 0.9
        assert 0.9 < witness["quotient"] <= 1
    else:
        assert witness is None


def test_a_pair_that_does_not_refute_is_no_witness(lip, here):
    """The slope is 8 on an interval that is too thin for a pair: the search alone proves it."""
    code, out, _ = lip("nets:thin", "--input-shape", "1", "--claims", "6")
    assert code == ExitCode.UNSOUND
    assert "claim: at most 6: refuted, by a search that proves 7.99999999" in out
    assert json.loads((here / "audit.json").read_text())["claim"]["witness"] is None
    lip("nets:thin", "--input-shape", "1", "--claims", "0.5")
    assert json.loads((here / "audit.json").read_text())["claim"]["witness"]["quotient"] > 0.5


@pytest.mark.parametrize(("claim", "verdict"), [("0.6", "proved"), ("0.4", "refuted")])
def test_what_was_tested_and_not_proved_is_told_in_the_verdict(lip, here, claim, verdict):
    _, out, _ = lip("nets:Halved", "--input-shape", "2", "--claims", claim)
    (line,) = (line for line in out.splitlines() if line.startswith("claim: "))
    assert line.startswith(f"claim: at most {claim}: {verdict}")
    assert line.endswith("(explained: tested, not proved)")
    report = json.loads((here / "audit.json").read_text())
    assert report["claim"]["marks"] == report["marks"] == ["explained: tested, not proved"]
    assert all("explained: tested, not proved" in b["flags"] for b in report["bounds"])


def test_a_claim_between_the_bounds_is_open():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 4))
    audited = audit(model, (4,))
    middle = (audited.bracket.lower + audited.bracket.upper) / 2
    assert audit(model, (4,), claims=middle).verdict == "open"


def test_the_edge_of_a_claim():
    """Of a linear network whose constant is 5: what rounding adds is for the tolerance."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
    assert audit(model, (2,), claims=5, tolerance=1e-9).verdict == "proved"
    assert audit(model, (2,), claims=5 * (1 - 1e-6)).verdict == "refuted"
    assert audit(model, (2,), claims=5 * (1 - 1e-6), tolerance=1e-5).verdict == "proved"


def test_the_stored_proofs_can_be_checked_again(lip, here):
    lip("nets:Ramp", "--input-shape", "1", "--norm", "inf", "-o", "found/one.json")
    tensors, _ = read_tensors(here / "found" / "one.safetensors")
    report = json.loads((here / "found" / "one.json").read_text())
    network = as_network(foreign_network.load("nets:Ramp"), (1,))
    assert len(report["bounds"]) >= 4, report["refused"]
    for bound in report["bounds"]:
        proof = {
            n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(bound["name"] + "/")
        }
        value = Lipschitz(
            value=bound["value"], side=bound["side"], norm=Norm(math.inf), domain=None, proof=proof
        )
        assert recheck(network, value) == []


def test_accuracy_is_bracketed_at_every_radius(lip, here):
    options = ("--data", "digits", "--epsilon", "0.01", "--epsilon", "0.5", "--size", "100")
    code, out, _ = lip("nets:digits", "--input-shape", "64", *options)
    assert code == ExitCode.DONE
    assert "accuracy on 100 test samples of digits" in out
    accuracy = json.loads((here / "audit.json").read_text())["accuracy"]
    small, large = accuracy["at"]
    assert (small["epsilon"], large["epsilon"]) == (0.01, 0.5)
    for radius in (small, large):
        assert (
            0
            <= radius["certified_accuracy"]
            <= radius["robust_accuracy"]
            <= accuracy["clean_accuracy"]
        )
    assert small["certified_accuracy"] > 0
    assert large["robust_accuracy"] < accuracy["clean_accuracy"]


def test_the_margin_of_a_linear_classifier_is_certified_exactly():
    """Radius |2x| / (√2·√2) = |x|: attack and certificate meet between the samples."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    x = torch.tensor([[-0.35], [0.15], [0.25], [0.45]])
    data = Labelled(name="line", inputs=x, labels=(x[:, 0] > 0).long(), box=None)
    audited = audit(model, (1,), data=data, epsilons=[0.2, 0.3, 0.4])
    assert audited.accuracy is not None
    assert [radius.attacked for radius in audited.accuracy.at] == [0.75, 0.5, 0.25]
    assert [radius.certified for radius in audited.accuracy.at] == [0.75, 0.5, 0.25]


def test_a_box_certifies_nothing_and_says_so(lip):
    code, out, _ = lip(
        *("nets:digits", "--input-shape", "64", "--domain", "0,1", "--data", "digits"),
        *("--size", "50", "--time-limit", "2"),
    )
    assert code == ExitCode.DONE
    assert "on [0, 1]:" in out
    assert "certified accuracy needs bounds on all of space" in out


def test_no_attack_in_norm_1_and_it_says_so(lip):
    code, out, _ = lip(
        *("nets:digits", "--input-shape", "64", "--norm", "1", "--data", "digits", "--size", "50"),
        *("--time-limit", "1"),
    )
    assert code == ExitCode.DONE
    assert "pgd attacks in the norms 2 and inf, not in norm 1" in out


def test_normalisation_counts(lip, here):
    lip("nets:Ramp", "--input-shape", "1,1,1", "--mean", "0.5", "--std", "0.25")
    report = json.loads((here / "audit.json").read_text())
    assert report["lipschitz_lower"] == pytest.approx(4)


def test_json_on_request_is_the_report_and_nothing_else(lip, here):
    _, out, _ = lip("nets:Ramp", "--input-shape", "1", "--json")
    assert json.loads(out) == json.loads((here / "audit.json").read_text())


def test_a_module_an_instance_and_a_file_are_networks():
    for target in ("nets:made", "nets:digits", "nets.py:Ramp"):
        assert not foreign_network.load(target).training


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nets", "named as package.module:make_net, got 'nets'"),
        ("nets:", "named as package.module:make_net"),
        ("net:Ramp", "net cannot be imported: No module named 'net'"),
        ("none.py:Ramp", "there is no file none.py"),
        ("nets:digit", "nets has no 'digit'; did you mean 'digits'?"),
        ("nets:needy", "missing a required argument: 'width'"),
        ("nets:broken", "nets:broken() raised RuntimeError: no such layer"),
        ("nets:number", "is a int, no torch.nn.Module and no function"),
        ("nets:torch.zeros", "raised TypeError"),
    ],
)
def test_what_is_no_network_is_bad_usage(lip, target, message):
    code, out, err = lip(target, "--input-shape", "1")
    assert (code, out) == (ExitCode.USAGE, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--input-shape", "1,x"), "no list of whole numbers"),
        (("--input-shape", "0"), "every length is at least 1"),
        (("--input-shape", "64", "--domain", "1,0"), "no pair LO,HI"),
        (("--input-shape", "64", "--domain", "1"), "no pair LO,HI"),
        (("--input-shape", "64", "--mean", "0.5"), "given together or not at all"),
        (("--input-shape", "64", "--mean", "0.5", "--std", "0"), "one positive std per mean"),
        (("--input-shape", "64", "--claims", "-1"), "a number of at least 0, got -1"),
        (("--input-shape", "64", "--claims", "nan"), "a number of at least 0, got nan"),
        (("--input-shape", "64", "--claims", "inf"), "a number of at least 0, got inf"),
        *(
            (("--input-shape", "64", "--claims", "1", "--tolerance", slack), "and less than 1, got")
            for slack in ("nan", "1e9", "inf", "1")
        ),
        (("--input-shape", "64", "--claims", "1.7e308", "--tolerance", "0.9"), "says nothing"),
        (("--input-shape", "64", "--data", "digit"), "did you mean 'digits'?"),
        (("--input-shape", "63", "--data", "digits"), "inputs of digits have shape (1, 8, 8)"),
        (
            ("--input-shape", "63"),
            "inputs of shape (63,): mat1 and mat2 shapes cannot be multiplied",
        ),
        (("--input-shape", "64", "--data", "half_max_abs"), "has no classes"),
        (("--input-shape", "64", "--weights", "none.pt"), "there is no file none.pt"),
        (
            ("--input-shape", "64", "-o", "x.safetensors"),
            "would go to x.safetensors: choose another",
        ),
        (
            ("--input-shape", "64", "--weights", "w.safetensors", "-o", "w.json"),
            "would go to w.safetensors: choose another",
        ),
    ],
)
def test_what_does_not_fit_is_bad_usage(lip, here, options, message):
    code, out, err = lip("nets:digits", *options)
    assert (code, out) == (ExitCode.USAGE, "")
    assert message in err
    assert "Traceback" not in err
    assert not (here / "audit.json").exists()


def test_a_layer_without_a_rule_is_named_and_the_network_asked(lip, here):
    code, out, _ = lip("nets:softmin", "--input-shape", "2")
    assert code == ExitCode.DONE
    assert "all that reads layers refused: layer '1' (Softmin)" in out
    assert "measured and not proved" in out
    report = json.loads((here / "audit.json").read_text())
    assert report["lipschitz_lower"] > 0
    assert report["lipschitz_upper"] is None
    assert report["bounds"][0]["flags"] == ["unverified"]
    assert report["measured"]["verified"] is False


@pytest.mark.parametrize(
    ("claim", "verdict", "code"),
    [("1.9", "refuted", ExitCode.UNSOUND), ("1.99", "open", ExitCode.DONE)],
)
def test_a_measured_quotient_refutes_with_a_margin(lip, here, claim, verdict, code):
    """The constant of (|x|, |x|) is 2 in the norm 1; sign has no rule."""
    got, out, err = lip("nets:Signed", "--input-shape", "1", "--norm", "1", "--claims", claim)
    assert (got, err) == (code, "")
    assert f"claim: at most {claim}: {verdict}" in out
    assert ("as measured and not proved" in out) == (verdict == "refuted")
    report = json.loads((here / "audit.json").read_text())
    assert report["claim"]["verdict"] == verdict
    assert 1.999 < report["lipschitz_lower"] <= 2
    tensors, _ = read_tensors(here / "audit.safetensors")
    u, v = tensors["measured/u"], tensors["measured/v"]
    assert float(2 * (u.abs() - v.abs()).abs() / (u - v).abs()) >= report["lipschitz_lower"]


def test_accuracy_of_a_network_that_is_asked_is_not_certified(lip, here):
    options = ("--data", "digits", "--epsilon", "0.5", "--size", "50")
    code, out, _ = lip("nets:squashed", "--input-shape", "64", *options)
    assert code == ExitCode.DONE
    assert "certified accuracy needs an upper bound, and there is none" in out
    (at,) = json.loads((here / "audit.json").read_text())["accuracy"]["at"]
    assert at["certified_accuracy"] is None
    assert 0 <= at["robust_accuracy"] <= 1


def test_what_can_be_neither_read_nor_asked_is_told(lip, here):
    code, out, err = lip("nets:Noisy", "--input-shape", "2")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "rand_like" in err or "Noisy" in err
    assert "Nor can it be measured: it answers the same inputs differently" in err
    assert not (here / "audit.json").exists()


def test_a_network_is_audited_in_evaluation_mode(lip):
    code, out, _ = lip("nets:trained_mode", "--input-shape", "2")
    assert code == ExitCode.DONE
    assert "at least" in out


def test_too_few_outputs_are_told():
    data = labelled("digits", (64,), 10, torch.zeros(0))
    with pytest.raises(ValueError, match=r"digits: the network has 2 outputs, .* a label 9"):
        audit(nn.Linear(64, 2), (64,), data=data)


def doubled():
    state = foreign_network.load("nets:Ramp").state_dict()
    return {name: 2 * value for name, value in state.items()}


@pytest.mark.parametrize("kind", ["safetensors", "pt", "float64"])
def test_weights_come_from_a_file(lip, here, kind):
    state = doubled()
    path = here / ("w.pt" if kind == "pt" else "w.safetensors")
    if kind == "float64":
        state = {name: value.double() for name, value in state.items()}
    if kind == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    lip("nets:Ramp", "--input-shape", "1", "--weights", str(path))
    report = json.loads((here / "audit.json").read_text())
    assert report["lipschitz_lower"] == pytest.approx(4)
    assert report["network"]["weights"] == str(path)
    assert len(report["network"]["sha256"]) == 64


def prefixed(prefix, state):
    return {f"{prefix}.{name}": value for name, value in state.items()}


PACKED = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "a usual name beside others": lambda state: {"ema": {"x": state["first.weight"]}, "net": state},
    "any name": lambda state: {"best": state, "accuracy": 0.9},
    "parallel": lambda state: {"state_dict": prefixed("module", state)},
    "compiled and parallel": lambda state: prefixed("_orig_mod.module", state),
    "arguments": lambda state: {"state_dict": state, "args": Namespace(lr=0.1)},
    "numpy": lambda state: {"model": state, "accuracy": np.float64(0.9), "at": np.int64(3)},
    "float16": lambda state: {name: value.half() for name, value in state.items()},
}


@pytest.mark.parametrize("kind", PACKED)
def test_weights_are_found_among_what_training_scripts_save(here, kind):
    torch.save(PACKED[kind](doubled()), here / "w.pt")
    model = foreign_network.load("nets:Ramp", here / "w.pt")
    assert model(torch.tensor([[-1.0]], dtype=model.last.weight.dtype)).item() == 4


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("old", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("new", [True, False])
def test_normalised_weights_of_the_older_form_are_read(here, old, new):
    """Into layers of either form: the network is the one that was saved."""
    (here / "forms.py").write_text(
        f"""
import torch
from torch import nn
from torch.nn.utils import parametrizations

def old():
    torch.manual_seed(0)
    return nn.Sequential(nn.utils.{old}(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))

def new():
    torch.manual_seed(1)
    return nn.Sequential(parametrizations.{old}(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))
"""
    )
    saved = foreign_network._imported("forms.py").old()
    saved(torch.randn(5, 4))
    torch.save(saved.state_dict(), here / "w.pt")
    model = foreign_network.load("forms.py:new" if new else "forms.py:old", here / "w.pt")
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(model(inputs), saved.eval()(inputs))
    network = as_network(model, (4,))
    torch.testing.assert_close(network(inputs.double()).float(), saved(inputs))


def test_a_pruned_layer_is_read(here):
    (here / "pruned.py").write_text(
        "from torch import nn\nfrom torch.nn.utils import prune\n"
        "net = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 3), 'weight', 0.5))\n"
    )
    (layer,) = as_network(foreign_network.load("pruned.py:net"), (4,)).layers
    assert int((layer.weight == 0).sum()) == 6


def test_a_network_without_numbers_needs_weights(lip, here):
    (here / "meta.py").write_text("from torch import nn\nnet = nn.Linear(2, 2).to('meta')\n")
    code, out, err = lip("meta.py:net", "--input-shape", "2")
    assert (code, out) == (ExitCode.USAGE, "")
    assert "tensors without numbers (meta): give it weights" in err
    save_file(nn.Linear(2, 2).state_dict(), here / "w.safetensors")
    assert not foreign_network.load("meta.py:net", here / "w.safetensors").weight.is_meta


class Harmful:
    def __reduce__(self):
        return (print, ("this code ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"first.weight": torch.zeros(2, 1)}, "it lacks 'last.weight'"),
        (
            {"first.weight": torch.zeros(2, 2)},
            "has shape (2, 2) and not (2, 1)",
        ),
        ({"frist.weight": torch.zeros(2, 1)}, "no 'frist.weight'; did you mean 'first.weight'?"),
        ([1, 2], "holds no state_dict"),
        ({"one": {"x": torch.zeros(1)}, "two": {"x": torch.zeros(1)}}, "or several"),
        (
            {"first.weight": torch.zeros(2, 1).char(), "last.weight": torch.zeros(1, 2)},
            "'first.weight' holds torch.int8, and no real numbers",
        ),
        (Harmful(), "could run code"),
    ],
)
def test_weights_that_do_not_fit_are_told(lip, here, content, message):
    torch.save(content, here / "w.pt")
    code, out, err = lip("nets:Ramp", "--input-shape", "1", "--weights", "w.pt")
    assert (code, out) == (ExitCode.USAGE, "")
    assert message in err


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_file_is_told(lip, here, name):
    (here / name).write_bytes(b"not weights")
    code, out, err = lip("nets:Ramp", "--input-shape", "1", "--weights", name)
    assert (code, out) == (ExitCode.USAGE, "")
    assert name in err
    assert "Traceback" not in err
