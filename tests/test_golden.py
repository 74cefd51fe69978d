"""Numbers that training gave when they were last looked at.

If they move, results that are stored under the same keys are no longer those that would be
computed today: raise TRAINING_PROTOCOL in lipbench/planning/cell.py, and store the new numbers by
`PYTHONPATH=tests python tests/test_golden.py`.
"""

import json
import tempfile
from contextlib import contextmanager
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from support import runs
from support.training import TINY
from torch import nn

import lipbench
from lipbench.method import Method
from lipbench.planning.cell import TRAINING_PROTOCOL
from lipbench.registry import load
from lipbench.storage.tensors import read_tensors

STORED = Path(__file__).with_name("golden.json")
# More than other versions of torch and other processors change, less than any change of a rule.
TOLERANCE = 1e-4
ENTRIES = {
    "standard": {},
    "weight_regularization": {"target_accuracy": 0.5, "mu": 0.01},
    "clip": {"target_accuracy": 0.5, "lambda": 0.1, "pairs": 16},
    "spectral_norm": {"layer_bound": 2.0, "last_layer_bound": 4.0},
    **{
        name: {field.rstrip("_"): value for field, value in fields.items()}
        for name, fields in TINY.items()
        if name not in ("weight_regularization", "clip")
    },
}


def methods():
    """Return the names of the built-in methods, without those of other libraries' layers."""
    points = distribution("lipbench").entry_points
    found = sorted(point.name for point in points if point.group == "lipbench.methods")
    loaded = {name: load("lipbench.methods", name, Method) for name in found}
    return [name for name, method in loaded.items() if not hasattr(method, "package")]


# Their derivatives jump where a network begins: |WᵀW| of an orthogonal W is kinked at entries that
# are 0 but for rounding, which differs from processor to processor. They begin elsewhere here.
KINKED = ("aol", "sandwich", "sll")


@contextmanager
def start_of(name):
    """Let the weights of a method begin where its derivatives do not depend on rounding."""
    orthogonal = nn.init.orthogonal_
    if name in KINKED:
        nn.init.orthogonal_ = partial(nn.init.normal_, std=0.3)
    try:
        yield
    finally:
        nn.init.orthogonal_ = orthogonal


def trained(name, folder, **training):
    """Return summaries of all tensors of both checkpoints of one small cell, in float64."""
    table = runs.benchmark({"name": name, **ENTRIES.get(name, {})}, evaluation={})
    table["training"] = table["training"] | {"dtype": "float64"} | training
    (cell,) = lipbench.plan(runs.several(table)).cells
    with start_of(name):
        assert lipbench.run_cell(cell, folder, device="cpu") == "done"
    return {
        f"{path.stem}/{key}": summary(value)
        for path in sorted(cell.folder(folder).path.glob("model*.safetensors"))
        for key, value in sorted(read_tensors(path)[0].items())
    }


def summary(value):
    # The norm, and the value along a fixed direction: a permutation does not go unseen.
    flat = value.double().flatten()
    direction = torch.linspace(0.5, 1.5, len(flat), dtype=torch.float64).cos()
    return [float(flat.norm()), float(flat @ direction)]


def differs(found, stored):
    """Return the names of the tensors that are not what they were."""
    if set(found) != set(stored):
        return sorted(set(found) ^ set(stored))
    return [
        name
        for name, (norm, along) in found.items()
        if max(abs(norm - stored[name][0]), abs(along - stored[name][1]))
        > TOLERANCE * stored[name][0]
    ]


@pytest.fixture(scope="module")
def golden():
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_every_built_in_method_is_watched(golden):
    assert sorted(golden["methods"]) == methods()


def test_the_numbers_belong_to_the_current_protocol(golden):
    assert golden["protocol"] == TRAINING_PROTOCOL, "the protocol is new: store its numbers"


@pytest.mark.parametrize("name", methods())
def test_training_gives_the_numbers_it_gave(golden, tmp_path, name):
    moved = differs(trained(name, tmp_path), golden["methods"][name])
    assert not moved, f"{moved} moved: raise TRAINING_PROTOCOL and store the new numbers"


def test_a_small_change_of_training_is_seen(golden, tmp_path):
    """A rate that is one part in a thousand larger moves every tensor."""
    rate = {"name": "adam", "lr": 0.02002}
    found = trained("standard", tmp_path, optimizer=rate)
    assert differs(found, golden["methods"]["standard"]) == sorted(found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        numbers = {name: trained(name, Path(root) / name) for name in methods()}
    content = {"protocol": TRAINING_PROTOCOL, "methods": numbers}
    STORED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
