"""Rows of networks that are no functions, and of test data that were trained on, say so."""

import pytest
from support import runs
from support.runs import benchmark, config, evaluation, results, several

from lipbench.runs.exits import ExitCode
from lipbench.tables.table import blocks

MODELS = """
import random
from dataclasses import dataclass
from lipbench.model import Model
from torch import nn

class Strange(nn.Module):
    def __init__(self, how, outputs, rng):
        super().__init__()
        self.how, self.calls, self.linear = how, 0, nn.Linear(64, outputs)
        nn.init.normal_(self.linear.weight, generator=rng)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        if self.how == "counts":
            self.calls += 1
        noise = random.random() if self.how == "draws" else 0.0
        crowd = 1.0 if self.how != "looks around" or len(x) > 1 else 2.0
        return self.linear(x.flatten(1)) * (1.0 + 1e-3 * noise) * crowd

@dataclass(frozen=True, kw_only=True)
class Odd(Model):
    how: str = ""

    def build(self, input_shape, outputs, rng):
        return Strange(self.how, outputs, rng)
"""
DATA = """
from dataclasses import dataclass
from lipbench.dataset import Dataset, Raw
from lipbench.registry import load

Digits = load("lipbench.datasets", "digits", Dataset)

@dataclass(frozen=True, kw_only=True)
class Leak(Digits):
    def read(self, folder):
        raw = super().read(folder)
        both = {"train_inputs": raw.train_inputs, "train_targets": raw.train_targets}
        return Raw(**both, test_inputs=raw.train_inputs, test_targets=raw.train_targets)
"""


@pytest.fixture(autouse=True)
def plugins(publish):
    publish(
        "odd",
        {"lipbench.models": {"odd": "odd:Odd"}, "lipbench.datasets": {"leak": "leak:Leak"}},
        {"odd.py": MODELS, "leak.py": DATA},
    )


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("counts", "its forward changes its own 'calls' with every call"),
        ("looks around", "its answer to an input depends on others in the batch"),
    ],
)
def test_rows_of_what_is_no_function_say_so_and_nothing_is_proved(tmp_path, how, reason):
    folder = tmp_path / "run"
    settings = several(
        benchmark(
            model={"name": "odd", "how": how}, selection="last", **evaluation(attack=[], noise=[])
        )
    )
    assert runs.run(settings, folder) == 0
    rows = [row for row in results(folder) if row.checkpoint == "last"]
    assert rows
    assert all(f"no function: {reason}" in row.flags for row in rows)
    bounds = [row for row in rows if row.metric == "lipschitz"]
    assert {row.status for row in bounds} == {"refused"}
    assert all(reason in row.flags[-1] for row in bounds)
    (block,) = blocks(folder, "last")
    assert any(reason in warning for warning in block.warnings)


def test_a_network_that_draws_is_not_trained(tmp_path):
    folder = tmp_path / "run"
    model = {"name": "odd", "how": "draws"}
    settings = several(benchmark(model=model, selection="last", **evaluation(attack=[], noise=[])))
    assert runs.run(settings, folder) == ExitCode.FAILED
    (status,) = folder.glob("cells/*/*/*/status.json")
    assert "in training it draws from the generator of" in status.read_text()


def test_rows_about_test_data_that_were_trained_on_say_so(tmp_path):
    folder = tmp_path / "run"
    settings = config(dataset={"name": "leak", "validation_size": 40, "pair_size": 64})
    assert runs.run(settings, folder) == 0
    flags = {
        row.metric: any("test inputs are among the training inputs" in flag for flag in row.flags)
        for row in results(folder)
        if row.status == "done"
    }
    assert flags["test_accuracy"]
    assert flags["robust_accuracy"]
    assert flags["certified_accuracy"]
    assert not flags["train_accuracy"]
    assert not flags["lipschitz"]
    (block,) = blocks(folder)
    assert any("are among the training inputs" in warning for warning in block.warnings)
