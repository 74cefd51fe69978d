"""Plugins that change what all share lose what is theirs; the numbers of all others stay."""

import os
import random
import re
import sys

import numpy as np
import pytest
import torch
from support import runs
from support.runs import cell_folders, config, evaluation, numbers, results, states

from lipbench.guards.guard import TorchTampered

METHODS = """
import os, random
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from lipbench.method import Method

@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}

@dataclass(frozen=True, kw_only=True)
class Scales(Plain):
    def start(self, net, data, rng):
        data.train.inputs.mul_(0.9)
        return {}

@dataclass(frozen=True, kw_only=True)
class ScalesTest(Plain):
    def finish(self, net, state, data, h):
        data.test.inputs.numpy()[:] *= 0.9
        return net.params

@dataclass(frozen=True, kw_only=True)
class ScalesInSteps(Plain):
    def draw(self, batch, rng):
        batch.data.validation.targets.zero_()
        return {}

@dataclass(frozen=True, kw_only=True)
class Moves(Plain):
    def start(self, net, data, rng):
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
        return {}

@dataclass(frozen=True, kw_only=True)
class Sets(Plain):
    def start(self, net, data, rng):
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        return {}
    def claims(self, net):
        torch.set_default_dtype(torch.float64)

@dataclass(frozen=True, kw_only=True)
class Patches(Plain):
    def start(self, net, data, rng):
        nn.functional.relu = lambda x, inplace=False: x
        return {}

KEPT = []

@dataclass(frozen=True, kw_only=True)
class Kernel(Plain):
    def start(self, net, data, rng):
        KEPT.append(torch.library.Library("aten", "IMPL"))
        KEPT[-1].impl("relu", lambda x: x.clamp(min=0.5), "CPU")
        return {}

@dataclass(frozen=True, kw_only=True)
class Draws(Plain):
    def start(self, net, data, rng):
        scale = 1 + 0.1 * np.random.rand() + random.random()
        return {"scale": torch.tensor(scale), "noise": torch.rand(3)}
    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs + 0.1 * torch.randn_like(batch.inputs))
        return state["scale"] * batch.loss(outputs), {**state, "buffers": buffers}

@dataclass(frozen=True, kw_only=True)
class DrawsStacked(Plain):
    stackable = True
    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs + 0.1 * torch.randn_like(batch.inputs))
        return batch.loss(outputs), {**state, "buffers": buffers}

@dataclass(frozen=True, kw_only=True)
class DrawsNumpy(Plain):
    stackable = True
    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        return np.random.rand() * batch.loss(outputs), {**state, "buffers": buffers}

@dataclass(frozen=True, kw_only=True)
class Orthogonal(Plain):
    def build(self, model, input_shape, rng):
        nn.utils.parametrizations.orthogonal(model[1])
        return model
"""
MODELS = """
from dataclasses import dataclass
from lipbench.model import Model
from torch import nn
import torch
BUILT = []

@dataclass(frozen=True, kw_only=True)
class Plain(Model):
    def build(self, input_shape, outputs, rng):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, outputs))

@dataclass(frozen=True, kw_only=True)
class Keeps(Plain):
    def build(self, input_shape, outputs, rng):
        with torch.no_grad():
            for before in BUILT:
                for parameter in before.parameters():
                    parameter.mul_(5)
        BUILT.append(super().build(input_shape, outputs, rng))
        return BUILT[-1]
"""
MEASURES = """
from dataclasses import dataclass
import torch
from torch import nn
from lipbench.adversary import Attack
from lipbench.bound import Bound, Lipschitz
from lipbench.certificate import Certificate
from lipbench.norm import NORMS

@dataclass(frozen=True, kw_only=True)
class Widens(Attack):
    norms = NORMS
    def propose(self, model, inputs, labels, threat, rng):
        threat.epsilon.mul_(20)
        return inputs + 1

@dataclass(frozen=True, kw_only=True)
class Hooks(Attack):
    norms = NORMS
    def propose(self, model, inputs, labels, threat, rng):
        list(model.modules())[-1].register_forward_hook(lambda m, i, o: -o)
        return inputs

@dataclass(frozen=True, kw_only=True)
class Writes(Attack):
    norms = NORMS
    def propose(self, model, inputs, labels, threat, rng):
        next(model.parameters()).detach().numpy()[:] *= 0.5
        return inputs

@dataclass(frozen=True, kw_only=True)
class Zeroes(Bound):
    side = "lower"
    norms = NORMS
    def cost(self, network, norm, domain):
        return 0.0
    def compute(self, network, norm, domain, known=(), inputs=None):
        inputs.zero_()
        return Lipschitz(value=0.0, side="lower", norm=norm, domain=domain, flags=("unverified",))

@dataclass(frozen=True, kw_only=True)
class Shrinks(Zeroes):
    def compute(self, network, norm, domain, known=(), inputs=None):
        for layer in network.layers:
            layer.weight.mul_(0.01)
        return Lipschitz(value=0.0, side="lower", norm=norm, domain=domain, flags=("unverified",))

@dataclass(frozen=True, kw_only=True)
class Relabels(Certificate):
    norms = NORMS
    def radius(self, network, norm, inputs, labels, epsilons):
        labels.zero_()
        return torch.zeros(len(inputs), dtype=torch.float64)
"""
DATA = """
from dataclasses import dataclass, replace
import numpy as np
from lipbench.dataset import Dataset
from lipbench.registry import load

Digits = load("lipbench.datasets", "digits", Dataset)
SHARED = []

@dataclass(frozen=True, kw_only=True)
class Drifts(Digits):
    def read(self, folder):
        if not SHARED:
            SHARED.append(super().read(folder))
        SHARED[0].train_inputs[:] *= 0.9
        return SHARED[0]

@dataclass(frozen=True, kw_only=True)
class Random(Digits):
    def read(self, folder):
        raw = super().read(folder)
        noise = np.random.default_rng().random(raw.train_inputs.shape, dtype=np.float32)
        return replace(raw, train_inputs=raw.train_inputs * noise)

@dataclass(frozen=True, kw_only=True)
class Seeded(Digits):
    def read(self, folder):
        raw = super().read(folder)
        noise = np.random.random(raw.train_inputs.shape).astype(np.float32)
        return replace(raw, train_inputs=raw.train_inputs * noise)
"""


def points(module, *classes):
    return {f"t_{name.lower()}": f"{module}:{name}" for name in classes}


@pytest.fixture(autouse=True)
def plugins(publish):
    methods = re.findall(r"class (\w+)\(", METHODS)
    measures = ("Widens", "Hooks", "Writes"), ("Zeroes", "Shrinks"), ("Relabels",)
    publish(
        "tampering",
        {
            "lipbench.methods": points("tamper_methods", *methods),
            "lipbench.models": points("tamper_models", "Plain", "Keeps"),
            "lipbench.datasets": points("tamper_data", "Drifts", "Random", "Seeded"),
            "lipbench.attacks": points("tamper_measures", *measures[0]),
            "lipbench.bounds": points("tamper_measures", *measures[1]),
            "lipbench.certificates": points("tamper_measures", *measures[2]),
        },
        {
            "tamper_methods.py": METHODS,
            "tamper_models.py": MODELS,
            "tamper_measures.py": MEASURES,
            "tamper_data.py": DATA,
        },
    )


def of(folder, *methods):
    # Without the keys, which have all entries in them.
    return [known for row, known in values(folder) if row.method in methods]


def values(folder):
    pairs = zip(results(folder), numbers(folder), strict=True)
    return [(row, [item for item in known if item[0] != "eval_key"]) for row, known in pairs]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    # Of a run without strangers.
    folder = tmp_path_factory.mktemp("untouched")
    assert runs.run(config("standard", "spectral_norm"), folder) == 0
    return of(folder, "standard", "spectral_norm")


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("t_scales", "data.train.inputs"),
        ("t_scalestest", "data.test.inputs"),
        ("t_scalesinsteps", "data.validation.targets"),
    ],
)
def test_a_method_that_changes_the_data_loses_its_cell_and_nobody_else_a_bit(
    tmp_path, untouched, method, what
):
    assert runs.run(config(method, "standard", "spectral_norm"), tmp_path) == 3
    found = states(tmp_path)
    assert found[method, 0] == "failed"
    message = cell_folders(tmp_path)[method, 0].read_status().message
    assert f"method '{method}' changed {what}" in message
    assert of(tmp_path, "standard", "spectral_norm") == untouched


def test_settings_of_the_process_reach_no_other_cell(tmp_path, untouched):
    assert runs.run(config("t_sets", "standard", "spectral_norm"), tmp_path) == 0
    assert torch.get_default_dtype() == torch.float32
    assert of(tmp_path, "standard", "spectral_norm") == untouched


def test_results_lie_where_they_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs.run(config("t_moves", "standard", **evaluation(attack=[], bound=[])), "out") == 0
    assert os.getcwd() == str(tmp_path)
    assert (tmp_path / "out" / "results.csv").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_who_replaces_functions_of_torch_ends_the_run_by_name(tmp_path):
    relu = torch.nn.functional.relu
    settings = config("t_patches", "standard", **evaluation(attack=[], bound=[]))
    with pytest.raises(TorchTampered, match=r"method 't_patches' changed torch\S*relu"):
        runs.run(settings, tmp_path)
    assert torch.nn.functional.relu is relu
    assert states(tmp_path) == {("t_patches", 0): "failed", ("standard", 0): "missing"}


@pytest.mark.filterwarnings("ignore")
def test_a_kernel_that_is_replaced_below_python_ends_the_run_by_name(tmp_path):
    settings = config("t_kernel", "standard", **evaluation(attack=[], bound=[]))
    try:
        with pytest.raises(TorchTampered, match="since method 't_kernel'"):
            runs.run(settings, tmp_path)
    finally:
        for library in sys.modules["tamper_methods"].KEPT:
            library._destroy()
    assert states(tmp_path)["standard", 0] == "missing"


DRAWING = [
    ({"method": [{"name": "t_draws"}]}),
    ({"method": [{"name": "t_orthogonal"}]}),
    ({"model": {"name": "t_plain"}}),
    ({"dataset": {"name": "t_seeded", "validation_size": 40, "pair_size": 64}}),
]


@pytest.mark.parametrize("changes", DRAWING, ids=["method", "torch's layer", "model", "data"])
def test_global_draws_are_the_same_each_time_for_one_seed(tmp_path, changes):
    found = []
    for number in range(2):
        torch.manual_seed(number), np.random.seed(number), random.seed(number)
        folder = tmp_path / str(number)
        tiny = evaluation(attack=[], bound=["product"])
        assert runs.run(config(**tiny | changes), folder) == 0
        found.append(numbers(folder))
        from lipbench.data import loading

        loading.load.cache_clear()
    assert found[0] == found[1]


def test_a_model_that_is_kept_and_changed_later_stays_what_it_was(tmp_path):
    found = []
    for name in ("t_plain", "t_keeps"):
        folder = tmp_path / name
        settings = config(model={"name": name}, seeds=(0, 1), **evaluation(attack=[], bound=[]))
        assert runs.run(settings, folder) == 0
        found.append([(r.metric, r.seed, r.value) for r in results(folder) if r.split])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("method", "library"), [("t_drawsstacked", "torch"), ("t_drawsnumpy", "numpy.random")]
)
def test_a_global_draw_in_a_stacked_hook_is_refused_by_name(tmp_path, method, library):
    assert runs.run(config(method, "standard"), tmp_path) == 3
    message = cell_folders(tmp_path)[method, 0].read_status().message
    assert f"{method} draws from the global generator of {library} in loss()" in message
    assert re.search(r"tamper_methods\.py, line \d+", message)
    assert states(tmp_path)["standard", 0] == "done"


@pytest.mark.parametrize("name", ["t_drifts", "t_random"])
def test_data_that_differ_between_two_readings_are_refused_by_name(tmp_path, name):
    dataset = {"name": name, "validation_size": 40, "pair_size": 64}
    assert runs.run(config(dataset=dataset), tmp_path) == 3
    message = cell_folders(tmp_path)["standard", 0].read_status().message
    assert f"{name[2:].capitalize()} reads other data each time" in message


MEASURED = [
    ("attack", {"name": "t_widens", "norm": 2, "epsilon": [0.1, 0.5]}, "the threat model"),
    ("attack", {"name": "t_hooks", "norm": 2, "epsilon": [0.1, 0.5]}, "_forward_hooks"),
    ("attack", {"name": "t_writes", "norm": 2, "epsilon": [0.1, 0.5]}, "weight"),
    ("bound", "t_zeroes", "inputs"),
    ("bound", "t_shrinks", "weight"),
    ("certificate", "t_relabels", "labels"),
]


@pytest.mark.parametrize(("kind", "entry", "what"), MEASURED)
def test_a_measure_that_changes_what_it_is_given_is_invalid_and_others_stay(
    tmp_path, untouched, kind, entry, what
):
    entries = [entry, *runs.EVALUATION.get(kind, [])]
    settings = config("standard", "spectral_norm", **evaluation(**{kind: entries}))
    assert runs.run(settings, tmp_path) == 0
    name = entry if isinstance(entry, str) else entry["name"]
    rows = results(tmp_path)
    own = [row for row in rows if row.estimator == name]
    assert own
    assert {row.status for row in own} == {"invalid"}
    assert all(what in row.flags[-1] for row in own)
    assert [known for row, known in values(tmp_path) if row.estimator != name] == untouched
