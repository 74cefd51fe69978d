"""What stands beneath a table about the units of a network that normalises its inputs."""

import pytest
import torch
from support import runs
from support.synthetic import INF, a_row, measurements
from torch import nn

from lipbench.bound import Bound
from lipbench.model import Model
from lipbench.networks.network import as_network
from lipbench.norm import Norm
from lipbench.registry import load
from lipbench.tables.notes import legend
from lipbench.tables.sources import Source
from lipbench.tables.table import build, table_text

MODEL = {"name": "mlp", "widths": [8], "activation": "relu", "normalisation": [0.3, 0.4]}
UNITS = (
    "normalise their inputs; the smallest standard deviation is s = 0.4. Behind that, an epsilon "
    "or radius is the one shown divided by s (l-inf 0.1 is 0.25), and a Lipschitz constant is s "
    "times the one shown."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units") / "run"
    attack = {"name": "pgd", "norm": float("inf"), "epsilon": [0.1], "steps": 2, "starts": 1}
    evaluation = {"test_size": 40, "attack": [attack], "bound": ["product"]}
    settings = runs.config("standard", "spectral_norm", model=MODEL, evaluation=evaluation)
    assert runs.run(settings, folder) == 0
    return folder


@pytest.mark.parametrize("style", ["plain", "markdown", "latex"])
def test_a_table_says_how_pixel_units_are_converted(folder, style):
    text = " ".join(table_text(folder, style).split())
    assert text.count(f"Its networks {UNITS}") == 1


def test_the_conversion_is_right():
    """Without the normalisation the network has s times the constant."""
    settings = {"widths": (8,), "activation": "relu", "normalisation": (0.3, 0.4)}
    model = load("lipbench.models", "mlp", Model)(**settings)
    whole = model.build((1, 8, 8), 10, torch.Generator().manual_seed(0)).eval()
    product = load("lipbench.bounds", "product", Bound)()
    shown, behind = (
        product.compute(as_network(net, (1, 8, 8)), Norm(2), None).value
        for net in (whole, nn.Sequential(*list(whole)[1:]))
    )
    assert behind == pytest.approx(0.4 * shown, rel=1e-6)


def legends(*rows):
    (block,) = build(Source(name="run", rows=tuple(rows)))
    return [text for text in legend(block) if "normalise" in text]


def scale(value, **changes):
    return a_row(metric="input_scale", value=value, **changes)


def test_it_names_the_methods_whose_networks_normalise():
    rows = [*measurements(0.9), *measurements(0.8, method="sandwich")]
    assert legends(*rows) == []
    assert legends(*rows, scale(1.0, method="sandwich")) == []
    (text,) = legends(*rows, scale(0.5, method="sandwich"))
    assert text.startswith("The networks of Sandwich normalise their inputs;")
    (text,) = legends(*rows, scale(0.5), scale(0.5, method="sandwich"))
    assert text.startswith("Its networks normalise")


def test_it_gives_the_ends_of_several_scales_and_no_example():
    rows = [*measurements(0.9), *measurements(0.8, seed=1)]
    (text,) = legends(*rows, scale(0.25), scale(0.5, seed=1))
    assert "standard deviations s are 0.25 to 0.5 (input_scale in results.csv)." in text
    assert " is 0." not in text


def test_without_an_attack_there_is_no_example():
    rows = [row for row in measurements(0.9) if row.metric != "robust_accuracy"]
    (text,) = legends(*rows, scale(0.3081))
    assert "s = 0.3081. Behind" in text
    assert "divided by s, and" in text


def test_the_example_is_of_an_attack_in_the_table():
    row = a_row(
        metric="robust_accuracy", norm=INF, epsilon=0.1, estimator="pgd", side="upper", value=0.5
    )
    assert "(l-inf 0.1 is 0.3246)" in legends(row, scale(0.3081))[0]
