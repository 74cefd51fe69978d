"""An audit proves nothing of a network that is no function, and says why."""

import json

import pytest
import torch
from torch import nn

from lipbench.audit.audit import audit, labelled
from lipbench.cli.main import call
from lipbench.data.splits import split
from lipbench.dataset import Dataset, Raw
from lipbench.registry import load
from lipbench.runs.exits import ExitCode

NETS = """
import random
import torch
from torch import nn

CALLS = 0

def scale():
    global CALLS
    CALLS += 1
    return 1.0 if CALLS < 60 else 2.0

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.calls = nn.Linear(64, 10), 0

class Counted(Base):
    def forward(self, x):
        self.calls += 1
        return self.linear(x)

class Chance(Base):
    def forward(self, x):
        return self.linear(x) + 0.0 * random.random()

class Crowd(Base):
    def forward(self, x):
        return self.linear(x) * (1.0 if x.shape[0] > 1 else 0.01)

class Bomb(Base):
    def forward(self, x):
        return self.linear(x) * scale()
"""


@pytest.fixture
def audited(tmp_path, monkeypatch, capsys):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)

    def run(name, *options):
        more = ("--input-shape", "64", "--time-limit", "1", "--claims", "1e3", *options)
        code = call(["audit", f"nets.py:{name}", *more])
        captured = capsys.readouterr()
        path = tmp_path / "audit.json"
        report = json.loads(path.read_text()) if path.exists() else None
        return code, captured.out, captured.err, report

    return run


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Counted", "its forward changes its own 'calls' with every call"),
        ("Chance", "its forward draws random numbers"),
    ],
)
def test_a_network_that_counts_or_draws_is_measured_and_not_proved(audited, name, reason):
    code, out, err, report = audited(name, "--data", "digits", "--size", "20")
    assert (code, err) == (ExitCode.DONE, "")
    assert f"remark: the network is no function of its input: {reason}." in out
    assert "claim: at most 1000: open: the network is no function" in out
    assert report["claim"]["verdict"] == "open"
    assert reason in report["remarks"][0]
    assert reason in report["refused"]["all that reads layers"]
    assert report["lipschitz_upper"] is None
    assert [at["certified_accuracy"] for at in report["accuracy"]["at"]] == [None] * 3


def test_a_network_that_looks_at_its_batch_is_told(audited):
    code, _, err, report = audited("Crowd")
    assert (code, report) == (ExitCode.USAGE, None)
    assert "its answer to an input depends on others in the batch" in err


def test_a_network_that_changes_while_it_is_audited_is_not_proved(audited):
    """Its steps were read, and bounded, before."""
    code, out, _, report = audited("Bomb", "--data", "digits", "--size", "20")
    assert code == ExitCode.DONE
    assert report["lipschitz_upper"] < 1e3
    assert "it answers otherwise after the audit." in report["remarks"][0]
    assert report["claim"]["verdict"] == "open"
    assert [at["certified_accuracy"] for at in report["accuracy"]["at"]] == [None] * 3
    assert "certified accuracy is of a function of the input, and the network is none." in out


# Test data that are training data.


def leaking(share):
    class Leaking(load("lipbench.datasets", "digits", Dataset)):
        def read(self, folder):
            raw = super().read(folder)
            count = int(share * len(raw.test_inputs))
            inputs, targets = raw.test_inputs.copy(), raw.test_targets.copy()
            inputs[:count] = raw.train_inputs[:count][::-1]
            targets[:count] = raw.train_targets[:count][::-1]
            return Raw(
                train_inputs=raw.train_inputs,
                train_targets=raw.train_targets,
                test_inputs=inputs,
                test_targets=targets,
            )

    return Leaking


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_test_inputs_that_are_training_inputs_are_counted(share, tmp_path):
    dataset = leaking(share)()
    data = split(dataset, dataset.read(tmp_path))
    count = int(share * len(data.test))
    message = f"{count} of {len(data.test)} test inputs are among the training inputs"
    assert data.shared_test_inputs == (message,)


@pytest.mark.parametrize("options", [{"validation_size": 700}, {"pair_size": 700}])
def test_inputs_that_chose_or_measured_count_as_well(options, tmp_path):
    dataset = leaking(1.0)(**options)
    assert split(dataset, dataset.read(tmp_path)).shared_test_inputs


def test_ordinary_data_share_nothing(tmp_path):
    dataset = leaking(0.0)()
    assert split(dataset, dataset.read(tmp_path)).shared_test_inputs == ()
    grid = load(
        "lipbench.datasets", "sine", Dataset
    )()  # a grid, of which two points are trained on
    assert split(grid, grid.read(tmp_path)).shared_test_inputs == ()


def test_an_audit_says_so(publish, monkeypatch):
    code = """
import numpy as np
from lipbench.dataset import Dataset, Raw

class Same(Dataset):
    input_shape = (4,)
    published_outputs = 2
    digest = "same"

    def read(self, folder):
        inputs = np.random.default_rng(0).random((20, 4)).astype(np.float32)
        both = {"inputs": inputs, "targets": np.arange(20) % 2}
        return Raw(**{f"{part}_{k}": v for part in ("train", "test") for k, v in both.items()})
"""
    publish("same", {"lipbench.datasets": {"same": "same:Same"}}, {"same.py": code})
    data = labelled("same", (4,), 10, torch.zeros(0))
    assert data.remarks == ("20 of 20 test inputs are among the training inputs",)
    accuracy = audit(nn.Linear(4, 2), (4,), data=data, epsilons=[], time_limit=0).accuracy
    assert accuracy.remarks == data.remarks
