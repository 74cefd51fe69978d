"""The numbers of a run against those computed by hand from its saved weights, in numpy."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import runs
from support.runs import cell_folders, results
from support.written import Written

import lipbench
from lipbench.data.splits import split
from lipbench.evaluation.input_scale import input_scale
from lipbench.layers.normalise import Normalise
from lipbench.networks.network import as_network
from lipbench.storage.rows import read_rows
from lipbench.storage.tensors import read_tensors

EPSILONS = [0.05, 0.2, 0.5]
PRODUCT = {"estimator": "product"}
SETTINGS = runs.config(
    model={"name": "mlp", "widths": [16], "activation": "sigmoid"},
    training={
        "epochs": 4,
        "batch_size": 16,
        "warmup": 0,
        "optimizer": {"name": "adam", "lr": 0.05},
    },
    selection={"attack": "pgd", "norm": 2, "epsilon": 0.2, "steps": 2, "starts": 1},
    evaluation={
        "test_size": 50,
        "noise": [
            {"sigma": 0.3081, "clamp": False, "draws": 4},
            {"sigma": 0.3081, "clamp": True, "draws": 1},
            {"sigma": 0.0, "clamp": False, "draws": 3},
        ],
        "attack": [runs.PGD | {"epsilon": EPSILONS, "size": 30}],
        "bound": ["product", "jacobian", {"name": "jacobian", "domain": [0.0, 1.0]}],
        "certificate": ["local_fastlip"],
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measures") / "run"
    assert runs.run(SETTINGS, folder) == 0
    return folder


@pytest.fixture(scope="module")
def cell_folder(folder):
    return cell_folders(folder)["standard", 0]


@pytest.fixture(scope="module")
def cell():
    return lipbench.plan(SETTINGS).cells[0]


@pytest.fixture(scope="module")
def data(cell):
    dataset = cell.benchmark.dataset
    return split(dataset, dataset.read(Path()))


@pytest.fixture(params=["chosen", "last"])
def checkpoint(request):
    return request.param


@pytest.fixture
def weights(cell_folder, checkpoint):
    path = (
        cell_folder.model if checkpoint == "chosen" else cell_folder.path / "model-last.safetensors"
    )
    return [value.double().numpy() for _, value in sorted(read_tensors(path)[0].items())]


def function(weights, inputs):
    bias, weight, last_bias, last_weight = weights
    hidden = 1 / (1 + np.exp(-(inputs.reshape(len(inputs), -1) @ weight.T + bias)))
    return hidden @ last_weight.T + last_bias


def rows(folder, checkpoint, metric, **wanted):
    return [
        row
        for row in results(folder)
        if (row.checkpoint, row.metric) == (checkpoint, metric)
        and all(getattr(row, key) == value for key, value in wanted.items())
    ]


def value(folder, checkpoint, metric, **wanted):
    (row,) = rows(folder, checkpoint, metric, **wanted)
    return row.value


def images(split):
    return split.inputs.double().numpy(), split.targets.numpy()


def test_accuracies_are_shares_of_right_answers(folder, checkpoint, weights, data):
    for name, samples, size in (("train", data.train, 128), ("test", data.test, 50)):
        inputs, labels = images(samples)
        right = function(weights, inputs[:size]).argmax(1) == labels[:size]
        assert len(right) == size
        assert value(folder, checkpoint, f"{name}_accuracy") == pytest.approx(right.mean())


def test_the_largest_class_is_a_share_of_the_predictions(folder, checkpoint, weights, data):
    predicted = function(weights, images(data.test)[0][:50]).argmax(1)
    share = np.bincount(predicted).max() / 50
    assert value(folder, checkpoint, "largest_class") == pytest.approx(share)


def test_noise_of_no_size_changes_no_answer_and_has_no_spread(folder, checkpoint):
    metrics = {row.metric: row.value for row in results(folder) if row.checkpoint == checkpoint}
    assert metrics["noise_accuracy[sigma=0,unclamped]"] == metrics["test_accuracy"]
    assert metrics["noise_accuracy_std[sigma=0,unclamped]"] == 0
    # One draw has a mean and no spread: it was not measured.
    assert metrics["noise_accuracy[sigma=0.3081,clamped]"] is not None
    assert metrics["noise_accuracy_std[sigma=0.3081,clamped]"] is None
    assert 0 <= metrics["noise_accuracy_std[sigma=0.3081,unclamped]"] < 0.5


def test_accuracy_under_attack_falls_from_the_clean_one(folder, checkpoint, weights, data):
    inputs, labels = images(data.test)
    clean = (function(weights, inputs[:30]).argmax(1) == labels[:30]).mean()
    robust = [value(folder, checkpoint, "robust_accuracy", epsilon=e) for e in EPSILONS]
    assert [clean, *robust] == sorted([clean, *robust], reverse=True)
    assert {row.n for row in rows(folder, checkpoint, "robust_accuracy")} == {30}


def test_the_selecting_attack_is_flagged_and_no_other_row(folder):
    flagged = {row.metric for row in results(folder) if "selection" in row.flags}
    assert flagged == {"robust_accuracy", "attack_queries"}


def test_the_outcome_of_each_sample_is_kept(folder, cell_folder, cell, checkpoint):
    """Their mean is the row; the distance is finite only where the answer is provably wrong."""
    key = cell.evaluations[4].key
    samples, _ = read_tensors(cell_folder.samples(key))
    for epsilon in EPSILONS:
        robust = samples[f"{checkpoint}/robust_accuracy/pgd/2/{epsilon:g}"]
        distance = samples[f"{checkpoint}/robust_accuracy/pgd/2/{epsilon:g}/distance"]
        assert float(robust.double().mean()) == pytest.approx(
            value(folder, checkpoint, "robust_accuracy", epsilon=epsilon)
        )
        assert distance.dtype == torch.float64
        assert bool(((distance == math.inf) >= (robust == 1)).all())
        assert float(distance[distance.isfinite()].max()) <= epsilon * (1 + 1e-6)


def test_the_upper_bound_is_the_product_of_norms_and_slopes(folder, checkpoint, weights):
    _, weight, _, last_weight = weights
    product = np.linalg.norm(weight, 2) * np.linalg.norm(last_weight, 2) / 4
    bound = value(folder, checkpoint, "lipschitz", estimator="product")
    assert product <= bound <= product * (1 + 1e-6)


def test_the_witness_of_the_lower_bound_proves_it(folder, cell_folder, cell, checkpoint, weights):
    key = cell.evaluations[6].key
    proof, _ = read_tensors(cell_folder.proof(key))
    u, v = (proof[f"{checkpoint}/jacobian/2/{name}"].numpy()[None] for name in "uv")
    quotient = np.linalg.norm(function(weights, u) - function(weights, v)) / np.linalg.norm(u - v)
    (row,) = (row for row in read_rows(cell_folder.rows(key)) if row.checkpoint == checkpoint)
    assert row.side == "lower"
    assert quotient * (1 - 1e-7) <= row.value <= quotient * (1 + 1e-12)


def test_a_lower_bound_in_a_box_has_its_witness_there(cell_folder, cell, checkpoint):
    key = cell.evaluations[7].key
    proof, _ = read_tensors(cell_folder.proof(key))
    (row,) = (row for row in read_rows(cell_folder.rows(key)) if row.checkpoint == checkpoint)
    assert row.domain == "[0, 1]"
    for name in "uv":
        point = proof[f"{checkpoint}/jacobian/2/{name}"]
        assert 0 <= float(point.min()) <= float(point.max()) <= 1


def test_certified_accuracy_and_radii_follow_from_gaps(folder, checkpoint, weights, data):
    """A sample is certified within the smallest quotient of a gap and its constant.

    The gap between classes i and j changes by ‖w_i - w_j‖·‖W‖/4, sigmoids having slopes up to 1/4.
    """
    inputs, labels = images(data.test)
    logits = function(weights, inputs[:50])
    labels, (_, first, _, last) = labels[:50], weights
    gaps = logits[np.arange(50), labels][:, None] - logits
    differences = np.linalg.norm(last[:, None] - last[None], axis=2)[labels]
    gaps[np.arange(50), labels], differences[np.arange(50), labels] = np.inf, 1.0
    radius = (gaps / (differences * np.linalg.norm(first, 2) / 4)).min(1)
    bound = value(folder, checkpoint, "lipschitz", estimator="product")
    assert (radius >= gaps.min(1) / (math.sqrt(2) * bound) - 1e-9)[gaps.min(1) > 0].all()
    for epsilon in EPSILONS:
        share = value(folder, checkpoint, "certified_accuracy", epsilon=epsilon, **PRODUCT)
        assert share == pytest.approx((radius > epsilon).mean())
    for level in (0.1, 0.25, 0.5, 0.75, 0.9):
        quantile = value(folder, checkpoint, f"certified_radius_quantile[{level:g}]", **PRODUCT)
        assert min(radius) - 1e-9 <= quantile <= np.quantile(radius, level) + 1e-6


@pytest.mark.parametrize("estimator", ["product", "local_fastlip"])
def test_certified_accuracy_is_never_above_accuracy_under_attack(folder, checkpoint, estimator):
    wanted = {"estimator": estimator}
    for epsilon in EPSILONS:
        certified = value(folder, checkpoint, "certified_accuracy", epsilon=epsilon, **wanted)
        assert certified <= value(folder, checkpoint, "test_accuracy")
    assert value(folder, checkpoint, "certified_accuracy", epsilon=0.05, **wanted) > 0


def test_a_certificate_of_samples_has_the_rows_of_one_constant(folder, checkpoint):
    """All 50 test samples, in the columns in which a bound certifies them."""
    for metric in ("certified_accuracy", "certified_radius_quantile[0.5]"):
        of_bound, of_certificate = (
            rows(folder, checkpoint, metric, estimator=name)
            for name in ("product", "local_fastlip")
        )
        assert len(of_certificate) == len(of_bound)
        for row, expected in zip(of_certificate, of_bound, strict=True):
            assert (row.n, row.norm, row.side, row.split) == (50, 2.0, "lower", "test")
            assert replace(row, value=0.0, seconds=0.0, estimator="", eval_key="") == replace(
                expected, value=0.0, seconds=0.0, estimator="", eval_key=""
            )


NO_NUMBERS = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from lipbench.certificate import Certificate
from lipbench.norm import Norm

@dataclass(frozen=True, kw_only=True)
class Mine(Certificate):
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})

    def refuses(self, network, norm):
        return "not today" if REFUSES else None

    def radius(self, network, norm, inputs, labels, epsilons):
        return torch.full((len(inputs),), torch.nan)
"""


@pytest.mark.parametrize(
    ("refuses", "status", "flag"),
    [("True", "refused", "not today"), ("False", "invalid", "not one number for each sample")],
)
def test_a_certificate_that_proves_nothing_says_why(publish, tmp_path, refuses, status, flag):
    code = {"mine.py": NO_NUMBERS.replace("REFUSES", refuses)}
    publish("stranger", {"lipbench.certificates": {"mine": "mine:Mine"}}, code)
    evaluation = {"test_size": 20, "certificate": ["mine"]}
    runs.run(runs.config(evaluation=evaluation), tmp_path / "run")
    rows = [row for row in results(tmp_path / "run") if row.estimator == "mine"]
    assert [row.status for row in rows] == [status] * 2
    assert all(flag in row.flags[-1] and row.value is None for row in rows)


def test_the_evaluations_of_training_are_counted(folder):
    """Four epochs of 128 samples: each is evaluated once and gives one gradient."""
    assert value(folder, "last", "network_evaluations") == 4 * 128
    assert value(folder, "last", "gradient_evaluations") == 4 * 128
    assert value(folder, "last", "training_seconds") > 0
    assert value(folder, "last", "epoch") == 4


def test_a_normalisation_in_the_network_is_said_in_pixel_units(tmp_path):
    """The scale by which constants in pixel units differ from those after the normalisation."""
    model = {"name": "mlp", "widths": [16], "activation": "relu", "normalisation": [0.1, 0.25]}
    settings = runs.config(model=model, evaluation={"test_size": 40})
    assert runs.run(settings, tmp_path / "run") == 0
    scale = {row.value for row in results(tmp_path / "run") if row.metric == "input_scale"}
    assert scale == {0.25}


def test_without_normalisation_there_is_no_scale(folder):
    assert not [row for row in results(folder) if row.metric == "input_scale"]


def test_a_normalisation_that_a_branch_goes_round_is_no_change_of_units():
    layers = {"normalise": Normalise([0.5], [0.25]), "layer": torch.nn.Linear(3, 3)}
    behind = Written(lambda self, x: self.layer(self.normalise(x)), **layers)
    beside = Written(lambda self, x: self.layer(self.normalise(x)) + x, **layers)
    scales = [input_scale(as_network(model, (1, 3))) for model in (behind, beside)]
    assert scales == [0.25, None]
