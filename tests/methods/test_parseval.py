import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.penalised import convolutional, dense, matrices, penalty
from support.training import a_method, a_model, a_net, an_entry, digits, same, train
from torch import nn

NAME = "parseval"


def retracted(net, steps=1, turn=0.0, **fields):
    # The network after retractions, with the state that the first one saw.
    method = a_method(NAME, **fields)
    state = method.start(net, digits(), torch.Generator().manual_seed(0))
    state["turn"] = torch.tensor(turn, dtype=torch.float64)
    h = {key: torch.tensor(getattr(method, key), dtype=torch.float64) for key in ("beta", "share")}
    for _ in range(steps):
        params, state = method.project(net, state, h)
        net = net.with_params(params)
    return net, state


def retraction(matrix, beta):
    return (1 + beta) * matrix - beta * matrix @ matrix.T @ matrix


def test_a_dense_layer_is_retracted_by_the_letter_but_for_the_last():
    net = dense()
    after, _ = retracted(net, beta=0.3)
    for layer, moved in zip(net.layers[:-1], after.layers[:-1], strict=True):
        np.testing.assert_allclose(moved.weight, retraction(layer.weight.numpy(), 0.3))
    assert torch.equal(after.layers[-1].weight, net.layers[-1].weight)
    whole, _ = retracted(net, beta=0.3, last_layer="retracted")
    last = retraction(net.layers[-1].weight.numpy(), 0.3)
    np.testing.assert_allclose(whole.layers[-1].weight, last)


@pytest.mark.parametrize(("conv_scale", "scaled"), [("taps", True), ("none", False)])
def test_a_kernel_is_a_matrix_for_each_group_times_the_root_of_its_taps(conv_scale, scaled):
    net = convolutional()
    after, _ = retracted(net, beta=0.3, conv_scale=conv_scale)
    for layer, moved, taps in zip(net.layers[:-1], after.layers[:-1], (9, 9, 4), strict=True):
        scale = math.sqrt(taps) if scaled else 1.0
        for old, new in zip(
            layer.weight.chunk(layer.groups), moved.weight.chunk(layer.groups), strict=True
        ):
            expected = retraction(scale * old.flatten(1).numpy(), 0.3) / scale
            np.testing.assert_allclose(new.flatten(1), expected, rtol=1e-9)


def test_of_a_share_of_the_rows_only_those_see_each_other():
    net = dense(widths=(20, 9))
    seen = set()
    for turn in (0.0, 0.3, 0.65, 0.9):
        after, state = retracted(net, turn=turn, beta=0.3, share=0.25)
        old, new = net.layers[0].weight, after.layers[0].weight
        moved = (old != new).any(dim=1)
        assert abs(int(moved.sum()) - 5) <= 1
        np.testing.assert_allclose(new[moved], retraction(old[moved].numpy(), 0.3))
        seen |= set(moved.nonzero().flatten().tolist())
        assert sorted((20 * state["place_0"]).round().tolist()) == list(range(20))
    assert len(seen) > 10


def test_every_row_has_its_turn_and_the_order_changes():
    method, net, data = a_method(NAME), dense(), digits()
    rng = torch.Generator().manual_seed(0)
    state = method.start(net, data, rng)
    later = method.begin_epoch(net, data, state, 2, rng)
    assert not torch.equal(state["place_0"], later["place_0"])
    turns = [float(method.draw(data.train, rng)["turn"]) for _ in range(100)]
    assert min(turns) < 0.1
    assert 0.9 < max(turns) < 1


def defect(weight):
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return float((wide @ wide.T - torch.eye(len(wide))).norm())


@pytest.mark.parametrize("beta", [1e-4, 0.1, 0.5])
def test_repeated_retractions_approach_orthogonal_rows(beta):
    """From singular values between 0.4 and 1.2."""
    net = dense(widths=(12, 16))
    for layer in net.layers:
        left, _, right = torch.linalg.svd(layer.weight, full_matrices=False)
        values = torch.linspace(0.4, 1.2, left.shape[1], dtype=torch.float64)
        net = net.with_params({layer.weight_name: left @ values.diag() @ right})
    defects = [[defect(layer.weight) for layer in net.layers[:-1]]]
    for _ in range(12):
        net, _ = retracted(net, beta=beta)
        defects.append([defect(layer.weight) for layer in net.layers[:-1]])
    for old, new in pairwise(defects):
        # What has arrived is as far off as rounding leaves it, and falls no further.
        assert all(after < max(before, 1e-12) for before, after in zip(old, new, strict=True))
    reported = a_method(NAME).report(net, {}, {})["defect"]
    sizes = [min(layer.weight.shape) for layer in net.layers[:-1]]
    squares = [value**2 / size for value, size in zip(defects[-1], sizes, strict=True)]
    assert reported == pytest.approx(max(squares))


def test_a_retracted_convolution_of_stride_1_does_not_expand():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3), nn.Flatten())
    net = a_net(module.double(), (1, 8, 8))
    tight, _ = retracted(net, steps=200, beta=0.3, last_layer="retracted")
    loose, _ = retracted(net, steps=200, beta=0.3, last_layer="retracted", conv_scale="none")
    norms = [[float(torch.linalg.matrix_norm(m, 2)) for m in matrices(n)] for n in (tight, loose)]
    assert max(norms[0]) <= 1 + 1e-9
    assert max(norms[1]) > 1.1


def test_weights_from_which_it_diverges_are_refused_and_end_training():
    limit = math.sqrt(1 + 2 / 0.5)
    layer = nn.Linear(64, 64, bias=False)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Linear(64, 10))
    for factor in (0.999, 1.001):
        nn.init.eye_(layer.weight)
        with torch.no_grad():
            layer.weight.mul_(limit * factor)
        reason = a_method(NAME, beta=0.5).refuses(model, digits())
        assert (reason is None) == (factor < 1)
    assert "layer '1' starts with a singular value of 2.238, and the" in reason
    (outcome,) = train(an_entry(NAME, beta=0.5, lr=1e3, epochs=2))
    assert outcome.state == "nan"
    assert outcome.checkpoints == {}


def test_only_a_free_last_layer_has_weight_decay_and_the_turn_is_kept():
    net = dense()
    value, gradients, state = with_decay(net, weight_decay=0.3)
    assert state["turn"] == 0.5
    last = net.layers[-1]
    assert value == pytest.approx(0.15 * float(last.weight.square().sum()))
    for name, slope in gradients.items():
        expected = 0.3 * last.weight if name == last.weight_name else torch.zeros_like(slope)
        torch.testing.assert_close(slope, expected, rtol=1e-9, atol=1e-12)
    assert with_decay(net, weight_decay=0.3, last_layer="retracted")[0] == 0


def with_decay(net, **fields):
    return penalty(NAME, net, draw={"turn": torch.tensor(0.5)}, **fields)


def test_with_beta_0_it_is_standard_training_bit_for_bit():
    (ours,) = train(an_entry(NAME, beta=0.0, weight_decay=0.0, epochs=2))
    (standard,) = train(an_entry("standard", epochs=2))
    assert same(ours.checkpoints["last"].params, standard.checkpoints["last"].params)


def test_a_convolutional_network_trains():
    data = digits(train=32, pairs=0, validation=0)
    entry = an_entry(NAME, epochs=2, batch_size=16, lr=0.01)
    (outcome,) = train(entry, data, model=a_model("madry_cnn"))
    assert outcome.state == "done"
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ConvTranspose2d(1, 2, 3), "layer '0' is a TransposedConvolution"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), "layer '0' is parametrised"),
        (nn.Linear(8, 3), "its only layer is the last one, which is left free"),
    ],
)
def test_what_it_has_no_rule_for_is_refused_by_name(layer, reason):
    assert re.search(reason, a_method(NAME).refuses(nn.Sequential(layer), digits()))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("beta", 1.0, r"beta must be in \[0, 1\), got 1\.0"),
        ("share", 0.0, r"share must be in \(0, 1\], got 0\.0"),
        ("weight_decay", -1.0, r"weight_decay must be at least 0 and finite, got -1\.0"),
    ],
)
def test_bad_fields_are_refused(field, value, reason):
    with pytest.raises(ValueError, match=reason):
        a_method(NAME, **{field: value})
