"""One epoch of training for all trials of a stack: the hot path."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad_and_value

from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars
from lipbench.networks.net import Net
from lipbench.networks.trees import Tree, stack
from lipbench.training.common_hooks import hooks_of_all
from lipbench.training.ensemble import Ensemble, TrainingState
from lipbench.training.operation_list import Traced
from lipbench.training.replay import CudaGraph, Replayer


def training_step(ensemble: Ensemble) -> Replayer:
    """Return the step of all trials, which is replayed where that is faster."""
    step = ensemble.mapped(lambda *arguments: _step(ensemble, *arguments))
    record = CudaGraph if ensemble.device.type == "cuda" else Traced

    def expected(*arguments: Any) -> int:
        rows, size = arguments[7].shape[1], ensemble.data.batch_size
        each = len(ensemble.data.train) // size if rows == size else 1
        return ensemble.training.epochs * each * ensemble.method.replays

    # Only a stackable method promises that its step is nothing but tensor code.
    is_pure = ensemble.method.stackable
    return Replayer(step, ensemble.meter, record if is_pure else None, expected)


def train_epoch(
    ensemble: Ensemble, state: TrainingState, step: Replayer
) -> tuple[Float[Tensor, " trials"], Float[Tensor, " trials"]]:
    """Take the steps of one epoch, as `training_step` gives them, and count them in `state`.

    Every trial has its own order of the samples, the last batch may be smaller, and nothing is
    read back from the device.

    Returns:
        The mean objective, and the mean accuracy on each batch after its step (NaN where it is
        not needed).
    """
    _begin(ensemble, state)
    with hooks_of_all(ensemble, "steps", state):
        return _take_steps(ensemble, state, step)


def _take_steps(
    ensemble: Ensemble, state: TrainingState, step: Replayer
) -> tuple[Float[Tensor, " trials"], Float[Tensor, " trials"]]:
    data, training = ensemble.data, ensemble.training
    streams = state.streams["order"]
    order = torch.stack([torch.randperm(len(data.train), generator=g) for g in streams])
    order = order.to(ensemble.device)
    rates = ensemble.column([trial.entry.training.optimizer.lr for trial in ensemble.trials])
    h = ensemble.scalars(state)
    losses: Any = 0.0
    correct: Any = 0.0
    seen = 0
    for start in range(0, len(data.train), training.batch_size):
        rows = order[:, start : start + training.batch_size]
        inputs, targets = data.train.rows(rows), data.train.targets[rows]
        for _ in range(ensemble.method.replays):
            draws = _draws(ensemble, state, inputs, targets, rows)
            before = (state.params, state.moments, state.state)
            after = step(*before, h, rates, inputs, targets, rows, draws)
            state.params, state.moments, state.state, value, accuracy = after
            if ensemble.drives("step") and state.epoch >= training.warmup:
                ensemble.move(state, accuracy)
                h = ensemble.scalars(state)
            losses = losses + value * rows.shape[1]
            correct = correct + accuracy * rows.shape[1]
            seen += rows.shape[1]
    state.forwards += ensemble.meter.forwards
    state.gradients += ensemble.meter.gradients
    return losses / seen, correct / seen


def _begin(ensemble: Ensemble, state: TrainingState) -> None:
    ensemble.meter.forwards = ensemble.meter.gradients = 0
    nets, streams = ensemble.nets(state), state.streams["method"]

    def begin(number: int, method_state: Tree) -> Tree:
        trial, rng = ensemble.trials[number], streams[number]
        if type(trial.method).begin_epoch is Method.begin_epoch:
            return method_state
        net, epoch = nets[number], state.epoch + 1
        with trial.guard("begin_epoch", state.point, epoch):
            return trial.method.begin_epoch(net, ensemble.data, method_state, epoch, rng)

    # In memory of its own, since a recorded step overwrites what it is given.
    state.state = ensemble.each(begin, state.state)


def _step(
    ensemble: Ensemble,
    params: Tree,
    moments: Tree,
    state: Tree,
    h: Scalars,
    rate: Float[Tensor, ""],
    inputs: Float[Tensor, "batch *shape"],
    targets: Tensor,
    rows: Int[Tensor, " batch"],
    draws: Tree,
) -> tuple[Tree, Tree, Tree, Tensor, Tensor]:
    """Return one trial after one step, its objective before and its batch accuracy after it."""
    method, data = ensemble.method, ensemble.data
    batch = Batch(inputs, targets, data.task, data.box, rows, data)

    def objective(params: Tree, rising: Tree) -> tuple[Tensor, Tree]:
        net = Net(ensemble.trained, params, state["buffers"], ensemble.meter)
        return method.loss(net, batch, {**state, **rising}, draws, h)

    rising = {name: state[name] for name in method.ascends}
    both = grad_and_value(objective, argnums=(0, 1), has_aux=True)
    (gradients, climbs), (value, state) = both(params, rising)
    params, moments = ensemble.training.optimizer.step(params, gradients, moments, rate)
    if method.ascends:
        state = method.ascend(state, climbs, h)
    params, state = method.project(ensemble.net(params, state), state, h)
    accuracy = torch.full_like(value, math.nan)
    if ensemble.measures_batches:
        net = ensemble.net(params, state)
        outputs = net.with_params(method.effective(net, state, h))(inputs)
        accuracy = batch.correct(outputs).mean()
    return params, moments, state, value, accuracy


def _draws(
    ensemble: Ensemble, state: TrainingState, inputs: Tensor, targets: Tensor, rows: Tensor
) -> Tree:
    if type(ensemble.method).draw is Method.draw:
        return {}
    drawn, data = [], ensemble.data
    for number, trial in enumerate(ensemble.trials):
        samples = (inputs[number], targets[number])
        batch = Batch(*samples, data.task, data.box, rows[number], data)
        drawn.append(trial.method.draw(batch, state.streams["method"][number]))
    return stack(drawn)
