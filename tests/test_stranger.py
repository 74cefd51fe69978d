"""A method in somebody else's distribution: one file and one entry point."""

import json

import pytest
from support import runs
from support.runs import config, results, states

from lipbench.cli.main import call
from lipbench.planning.keys import source_digest

METHOD = '''\
"""Shrink the weights after each step."""

from dataclasses import dataclass

from lipbench.method import Method


@dataclass(frozen=True, kw_only=True)
class Shrink(Method):
    """Multiply all weights by a factor after each step of the optimiser."""

    factor: float = 0.99

    def loss(self, net, batch, state, draw, h):
        """Return the mean loss of the batch."""
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def project(self, net, state, h):
        """Return smaller parameters."""
        return {name: h["factor"] * value for name, value in net.params.items()}, state
'''
TOML = """
[[benchmark]]
name = "tiny"
dataset = { name = "digits", train_size = 200, validation_size = 40 }
model = { name = "mlp", widths = [16], activation = "relu" }
training = { epochs = 2, batch_size = 16, warmup = 0, optimizer = { name = "adam", lr = 0.02 } }
[benchmark.evaluation]
test_size = 60
attack = [{ name = "pgd", norm = inf, epsilon = [0.1], steps = 2, starts = 1 }]
bound = ["product", "pair_ascent"]
[[benchmark.method]]
name = "standard"
[[benchmark.method]]
name = "shrink"
factor = 0.9
"""


@pytest.fixture
def stranger(publish):
    return publish(
        "weights", {"lipbench.methods": {"shrink": "shrink:Shrink"}}, {"shrink.py": METHOD}
    )


def test_it_takes_twenty_lines():
    assert len([line for line in METHOD.splitlines() if line]) < 20


def test_it_is_listed_with_where_it_comes_from(stranger, capsys):
    assert call(["ls", "methods", "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert (found["shrink"]["distribution"], found["shrink"]["version"]) == ("weights", "1.0")
    assert not found["shrink"]["broken"]


def test_it_runs_beside_the_built_in_methods_and_is_in_the_table(stranger, tmp_path, capsys):
    settings, folder = tmp_path / "mine.toml", tmp_path / "run"
    settings.write_text(TOML)

    assert call(["run", str(settings), "-o", str(folder)]) == 0
    assert set(states(folder).values()) == {"done"}
    norms = {
        row.method: row.value
        for row in results(folder)
        if row.metric == "lipschitz" and row.side == "upper" and row.checkpoint == "last"
    }
    assert norms["shrink"] < 0.5 * norms["standard"]
    capsys.readouterr()
    for style in ("--latex", "--markdown", "--csv"):
        assert call(["table", str(folder), style]) == 0
        assert "hrink" in capsys.readouterr().out


def test_a_change_of_its_code_trains_it_anew_and_nothing_else(stranger, tmp_path):
    folder = tmp_path / "run"
    settings = config("standard", {"name": "shrink", "factor": 0.999})
    assert runs.run(settings, folder) == 0
    before = runs.networks(folder)

    (stranger / "shrink.py").write_text(METHOD.replace('h["factor"] *', '1.0 * h["factor"] *'))
    # What a new process would begin with.
    source_digest.cache_clear()
    assert runs.run(settings, folder) == 0
    after = runs.networks(folder)
    assert all(after[path] == before[path] for path in before)
    assert len(after) == len(before) + 2
