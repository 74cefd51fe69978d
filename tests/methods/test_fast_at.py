import pytest
import torch
from support.adversaries import Normed, climbed, close, held, plain, regression, uniform
from support.training import SMALL, a_method, a_net, an_entry, batches, digits, initial, same, train
from torch.nn import functional as F

from lipbench.method import Summary
from lipbench.norm import Norm
from lipbench.seeds import stream

FIELDS = {"epsilon": 0.2, "probe": 12}


def placed(inputs, norm, rng):
    offsets = 0.2 * uniform(inputs.shape, norm, rng)
    pairs = zip(inputs + offsets, inputs, strict=True)
    return torch.stack([held(point, centre, 0.2, norm) for point, centre in pairs])


@pytest.mark.parametrize("norm", [Norm(2), Norm(torch.inf)], ids=str)
def test_training_is_a_plain_loop_and_the_probe_is_attacked_with_five_steps(norm):
    data, rng = digits(train=24, dtype=torch.float64), stream(0, "method", "fast_at")
    net, theirs = plain(data)
    watched, labels = data.train.inputs[:12], data.train.targets[:12]
    first = placed(watched, norm, rng)

    def climb(points, inputs, targets, steps, length):
        def height(point, row):
            return F.cross_entropy(net(point), targets[row : row + 1])

        return climbed(height, points, inputs, 0.2, norm, steps, length)

    for inputs, targets in batches(data, 12, epochs=1):
        points = climb(placed(inputs, norm, rng), inputs, targets, 1, 1.25 * 0.2)
        theirs.zero_grad()
        F.cross_entropy(net(points), targets).backward()
        theirs.step()
    entry = an_entry("fast_at", epochs=1, batch_size=12, dtype="float64", norm=norm, **FIELDS)
    (outcome,) = train(entry, data)
    close(outcome, net)
    answers = net(climb(first, watched, labels, 5, 0.05)).argmax(dim=1)
    robust = float((answers == labels).double().mean())
    assert outcome.history[0]["probe_accuracy"] == pytest.approx(robust)


# A rate at which the accuracy of the probe falls sooner or later; any fall counts as a failure.
WILD = {"epochs": 6, "lr": 4.0, "drop": 1e-6, "epsilon": 0.1, "probe": 64}
FEW = digits(train=48)


@pytest.mark.parametrize("model", [SMALL, Normed()], ids=["plain", "normed"])
def test_after_a_failure_the_network_before_it_is_kept(model):
    (outcome,) = train(an_entry("fast_at", **WILD), FEW, model=model)
    robust = [row["probe_accuracy"] for row in outcome.history]
    failed = next(n for n in range(1, 6) if robust[n] < robust[n - 1])
    assert [row["collapsed"] for row in outcome.history] == [0.0] * failed + [1.0] * (6 - failed)
    (short,) = train(an_entry("fast_at", **{**WILD, "epochs": failed}), FEW, model=model)
    last, before = outcome.checkpoints["last"], short.checkpoints["last"]
    assert same(last.params, before.params)
    assert same(last.buffers, before.buffers)
    # Training itself is at rest there, too.
    assert set(robust[failed + 1 :]) == {robust[failed - 1]}
    assert {row["train_accuracy"] for row in outcome.history[failed:]} == {before.train_accuracy}


def test_without_a_stop_a_failure_is_flagged_and_nothing_else():
    (noted,) = train(an_entry("fast_at", stop=False, **WILD), FEW)
    (never,) = train(an_entry("fast_at", **{**WILD, "drop": 1.0}), FEW)
    (blind,) = train(an_entry("fast_at", **{**WILD, "probe": 0}), FEW)
    assert noted.history[-1]["collapsed"] == 1
    assert never.history[-1]["collapsed"] == 0
    assert same(noted.checkpoints["last"].params, never.checkpoints["last"].params)
    assert "collapsed" not in blind.history[-1]


@pytest.mark.parametrize(("fall", "collapsed"), [(0.19, False), (0.21, True)])
def test_a_fall_of_more_than_twenty_points_in_an_epoch_is_a_failure(fall, collapsed):
    method, data = a_method("fast_at", epsilon=0.1), digits()
    net, h = a_net(initial(data), (1, 8, 8)), {"epsilon": torch.tensor(0.1)}
    state = method.start(net, data, torch.Generator())
    summary = Summary(epoch=1, epochs=2, loss=1.0, train_accuracy=1.0)
    seen = method.end_epoch(net, summary, state, h)
    assert not seen["collapsed"]
    state = {**state, "robust": seen["robust"] + fall}
    assert bool(method.end_epoch(net, summary, state, h)["collapsed"]) is collapsed


def test_a_regression_has_no_accuracy_to_watch():
    data = regression()
    assert "set probe = 0" in a_method("fast_at").refuses(initial(data), data)


def test_a_step_after_a_failure_changes_neither_parameters_nor_statistics():
    method, data = a_method("fast_at"), digits()
    net = a_net(initial(data, model=Normed()), (1, 8, 8))
    state = method.start(net, data, torch.Generator()) | {"buffers": net.buffers}
    moved = net.with_params({name: value + 1 for name, value in net.params.items()})
    state["buffers"] = {name: value + 1 for name, value in net.buffers.items()}
    for collapsed, kept in ((False, moved.params), (True, net.params)):
        now = {**state, "collapsed": torch.tensor(collapsed)}
        params, after = method.project(moved, now, {})
        assert same(params, kept)
        assert same(after["buffers"], net.buffers if collapsed else state["buffers"])
