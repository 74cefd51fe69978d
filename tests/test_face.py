"""The face: `import lipbench` alone serves whoever runs it, and the author of any plugin."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
from support import runs
from support.runs import results, states

import lipbench
from lipbench.cli.main import call

METHOD = '''\
from dataclasses import dataclass
from typing import ClassVar

from lipbench import Batch, Method, Net, Params, Scalars, State, Strength


@dataclass(frozen=True, kw_only=True)
class Decayed(Method):
    """Shrink all weights after each step."""

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="rate", scale=0.1)
    rate: float = 0.01

    def loss(self, net: Net, batch: Batch, state: State, draw: State, h: Scalars):
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def project(self, net: Net, state: State, h: Scalars) -> tuple[Params, State]:
        return {name: value * (1 - h["rate"]) for name, value in net.params.items()}, state
'''
ATTACK = '''\
from dataclasses import dataclass
from typing import ClassVar

import torch
from lipbench import Attack, Norm, Threat, at_least, numbers, on_rows, require


@dataclass(frozen=True, kw_only=True)
class Guess(Attack):
    """Random corners of the ball, for the samples that are still classified correctly."""

    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(float("inf"))})
    samplewise: ClassVar[bool] = True
    tries: int = 3

    def __post_init__(self):
        require(at_least("tries", self.tries, 1))

    def propose(self, model, inputs, labels, threat: Threat, rng):
        found = inputs.clone()
        alive = torch.ones(len(inputs), dtype=torch.bool)
        for number in range(self.tries):
            asked = on_rows(model, alive)
            drawn = numbers(asked, rng, number)
            if isinstance(drawn, torch.Generator):
                noise = torch.randn(inputs[alive].shape, generator=drawn)
            else:
                noise = drawn.draw("normal", tuple(inputs.shape[1:]))
            epsilon = torch.as_tensor(threat.epsilon).expand(len(inputs))[alive]
            corners = noise.sign() * epsilon.view(-1, *[1] * (inputs.ndim - 1))
            found[alive] = inputs[alive] + corners.to(inputs)
            wrong = asked(found[alive]).argmax(dim=1) != labels[alive]
            alive[alive.clone()] = ~wrong
        return found
'''
BOUND = '''\
from dataclasses import dataclass
from typing import ClassVar

import torch
from lipbench import NORMS, Bound, Box, Lipschitz, Network, Norm, Refused, Side
from lipbench import positive, require, witness


@dataclass(frozen=True, kw_only=True)
class Sampled(Bound):
    """The largest quotient of random pairs."""

    side: ClassVar[Side] = "lower"
    norms: ClassVar[frozenset[Norm]] = NORMS
    pairs: int = 16

    def __post_init__(self):
        require(positive("pairs", self.pairs))

    def cost(self, network: Network, norm: Norm, domain: Box | None) -> float:
        return 0.01

    def compute(self, network, norm, domain, known=(), inputs=None) -> Lipschitz:
        if not network.layers:
            raise Refused("there is no layer")
        rng = torch.Generator().manual_seed(0)
        shape = (self.pairs, *network.input_shape)
        u, v = (torch.rand(shape, generator=rng, dtype=torch.float64) for _ in range(2))
        return witness(network, u, v, norm, domain)
'''
CERTIFICATE = '''\
from dataclasses import dataclass
from typing import ClassVar

import torch
from lipbench import Certificate, Network, Norm


@dataclass(frozen=True, kw_only=True)
class Nothing(Certificate):
    """Proves nothing, which is always sound."""

    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2)})

    def radius(self, network: Network, norm: Norm, inputs, labels, epsilons):
        return torch.zeros(len(inputs), dtype=torch.float64)
'''
DATASET = '''\
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from lipbench import DataMissing, Dataset, Raw, Task


@dataclass(frozen=True, kw_only=True)
class Halves(Dataset):
    """Which half of an input of four numbers has the larger sum."""

    task: ClassVar[Task] = "classification"
    input_shape: ClassVar[tuple[int, ...]] = (4,)
    published_outputs: ClassVar[int] = 2
    published_size: ClassVar[int] = 200
    published_test_size: ClassVar[int] = 50

    @property
    def digest(self) -> str:
        return "halves of seed 0"

    def read(self, folder: Path) -> Raw:
        if folder is None:
            raise DataMissing("no folder")
        inputs = np.random.default_rng(0).random((250, 4), dtype=np.float32)
        targets = (inputs[:, :2].sum(axis=1) > inputs[:, 2:].sum(axis=1)).astype(np.int64)
        return Raw(
            train_inputs=inputs[:200],
            train_targets=targets[:200],
            test_inputs=inputs[200:],
            test_targets=targets[200:],
        )
'''
MODEL = '''\
from dataclasses import dataclass

from lipbench import MaxMin, Model, Normalise
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Sorted(Model):
    """One hidden layer that sorts."""

    width: int = 8

    def build(self, input_shape, outputs, rng):
        net = nn.Sequential(
            nn.Linear(input_shape[0], self.width), MaxMin(), nn.Linear(self.width, outputs)
        )
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3, generator=rng)
        return net
'''
PLUGINS = {
    "lipbench.methods": {"decayed": "decayed:Decayed"},
    "lipbench.attacks": {"guess": "guess:Guess"},
    "lipbench.bounds": {"sampled": "sampled:Sampled"},
    "lipbench.certificates": {"nothing": "nothing:Nothing"},
    "lipbench.datasets": {"halves": "halves:Halves"},
    "lipbench.models": {"sorted": "sorted_net:Sorted"},
}
FILES = {
    "decayed.py": METHOD,
    "guess.py": ATTACK,
    "sampled.py": BOUND,
    "nothing.py": CERTIFICATE,
    "halves.py": DATASET,
    "sorted_net.py": MODEL,
}


def test_six_plugins_need_no_other_import_than_the_face(publish, tmp_path):
    publish("stranger", PLUGINS, FILES)
    table = runs.benchmark(
        {"name": "decayed", "rate": 0.001},
        dataset={"name": "halves", "validation_size": 40},
        model={"name": "sorted"},
        selection="last",
        evaluation={
            "attack": [{"name": "guess", "norm": math.inf, "epsilon": [0.1, 0.3]}],
            "bound": ["product", "sampled"],
            "certificate": [{"name": "nothing", "norm": 2}],
        },
    )
    assert runs.run({"schema": 1, "seeds": [0], "benchmark": [table]}, tmp_path / "run") == 0
    assert set(states(tmp_path / "run").values()) == {"done"}
    rows = [row for row in results(tmp_path / "run") if row.checkpoint == "last"]
    assert {row.status for row in rows} == {"done"}
    found = {row.estimator: row.value for row in rows if row.metric == "lipschitz"}
    assert 0 < found["sampled"] <= found["product"]
    assert {"guess", "nothing"} <= {row.estimator for row in rows}


def test_no_text_of_these_plugins_names_a_deep_module():
    assert not [text for text in FILES.values() if "from lipbench." in text]


@pytest.mark.parametrize("name", lipbench.__all__)
def test_every_name_is_handed_out(name):
    assert getattr(lipbench, name) is not None
    assert name in dir(lipbench)


def test_a_type_checker_sees_what_is_handed_out():
    tree = ast.parse(Path(lipbench.__file__).read_text(encoding="utf-8"))
    (guard,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {node.names[0].asname: node.module for node in guard.body}
    assert seen == lipbench._HOMES
    assert sorted(seen) == sorted(lipbench.__all__)


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="has no attribute 'Methd'"):
        _ = lipbench.Methd


def test_no_file_or_room_bears_the_name_of_what_is_handed_out():
    folder = Path(lipbench.__file__).parent
    names = {path.stem for path in folder.iterdir()} | {"methods", "attacks"}
    assert not names & set(lipbench.__all__)


def test_doors_of_data_sets_load_no_torch():
    code = "import sys; from lipbench import Dataset, Raw; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_loads_no_torch(capsys):
    code = (
        "import sys; from lipbench.cli.main import call\n"
        "call(['--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert call(["--help"]) == 0
