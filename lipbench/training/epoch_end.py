"""Measurements after each epoch, and what follows: checkpoints, strengths, ends."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipbench.data.splits import Batch, Split
from lipbench.method import Method, Summary
from lipbench.networks.network_stack import Networks
from lipbench.networks.trees import Tree, take, tree_map
from lipbench.training.common_hooks import hooks_of_all
from lipbench.training.ensemble import Ensemble, TrainingRefused, TrainingState

Score = Callable[[Networks, Sequence[int]], list[float]]
"""Validation accuracy of networks under the selection attack, for the seed of each."""


def measure_epoch(
    ensemble: Ensemble,
    state: TrainingState,
    loss: Float[Tensor, " trials"],
    batch_accuracy: Float[Tensor, " trials"],
    score: Score | None,
) -> None:
    """Measure the networks after an epoch, offer them for choice, and move the strengths.

    What was measured, which trials ended, and the new strengths are kept in `state`.
    """
    data = ensemble.data
    effective, train, answers = _effective(ensemble, state)
    if type(ensemble.method).end_epoch is not Method.end_epoch:
        _end(ensemble, state, loss, train)
        # What the hook made of the networks is what will be chosen and saved.
        effective, train, answers = _effective(ensemble, state)
    validation = None
    if train is not None and len(data.validation):
        buffers = state.state["buffers"]
        validation, finite = _accuracy(ensemble, effective, buffers, data.validation)
        answers = answers & finite
    columns = {
        "loss": loss,
        "batch_accuracy": batch_accuracy,
        "train_accuracy": train,
        "validation_accuracy": validation,
        "validation_score": None,
        "strength": state.course.get("strength"),
    }
    # Read at once: each reading waits for the device.
    read = {name: None if column is None else column.tolist() for name, column in columns.items()}
    finite = _finite(state.params, loss) & _finite(effective, loss) & answers
    is_finite: list[bool] = finite.tolist()
    going: list[int] = []
    for number in range(len(ensemble.trials)):
        if state.ended[number] is not None:
            continue
        row = _row(read, number, len(state.histories[number]) + 1)
        row |= _report(ensemble, state, number)
        state.histories[number].append(row)
        if not is_finite[number]:
            state.ended[number] = row["epoch"]
        else:
            going.append(number)
    if train is not None and score is not None and not ensemble.trials[0].entry.path:
        _offer(ensemble, state, going, effective, score)
    if ensemble.drives("epoch") and state.epoch + 1 >= ensemble.training.warmup:
        measures = {"train": train, "batch": batch_accuracy, "validation": validation}
        ensemble.move(state, _measured(measures, ensemble.discrepancy.measure))


def snapshot(ensemble: Ensemble, state: TrainingState, number: int, row: dict[str, Any]) -> Tree:
    """Return a copy of one trial after the epoch of `row`, enough to finish its network later."""
    numbers = {
        key: torch.tensor(math.nan if row[key] is None else row[key], dtype=torch.float64)
        for key in ("epoch", "train_accuracy", "strength")
    }
    h = {name: column[number].clone() for name, column in ensemble.scalars(state).items()}
    if ensemble.method.strength is not None:
        # That of the epoch: at the end of a point it has moved on already.
        h[ensemble.method.strength.field].fill_(row["strength"])
    return {
        "params": tree_map(torch.clone, take(state.params, number)),
        "state": tree_map(torch.clone, take(state.state, number)),
        "h": h,
        "numbers": numbers,
    }


def _offer(
    ensemble: Ensemble, state: TrainingState, going: list[int], effective: Tree, score: Score
) -> None:
    """Offer the networks after an epoch for choice; those that are attacked are so together."""
    rows = {number: state.histories[number][-1] for number in going}
    effects = {
        number: not ensemble.trials[number].unregularised(row["strength"])
        for number, row in rows.items()
    }
    wanted = [
        number
        for number, row in rows.items()
        if state.choices[number].wants(row["epoch"], row["train_accuracy"], effects[number])
    ]
    if wanted:
        networks = ensemble.networks(effective, state.state, wanted)
        seeds = [ensemble.trials[number].seed for number in wanted]
        for number, value in zip(wanted, score(networks, seeds), strict=True):
            rows[number]["validation_score"] = value
    for number, row in rows.items():
        state.choices[number].offer(
            row["epoch"],
            row["train_accuracy"],
            row["validation_score"],
            partial(snapshot, ensemble, state, number, row),
            regularised=effects[number],
        )


def _measured(measures: dict[str, Tensor | None], name: str) -> Tensor:
    accuracy = measures[name]
    if accuracy is None:
        raise TrainingRefused(
            "the discrepancy principle measures accuracy on validation data, and there are none: "
            "set validation_size of the data set, or another measure."
        )
    return accuracy


def _end(ensemble: Ensemble, state: TrainingState, loss: Tensor, train: Tensor | None) -> None:
    nets, h = ensemble.nets(state), ensemble.scalars(state)

    def end(number: int, method_state: Tree) -> Tree:
        summary = Summary(
            epoch=state.epoch + 1,
            epochs=ensemble.training.epochs,
            loss=float(loss[number]),
            train_accuracy=math.nan if train is None else float(train[number]),
        )
        scalars = {name: column[number] for name, column in h.items()}
        trial = ensemble.trials[number]
        with trial.guard("end_epoch", state.point, state.epoch):
            return trial.method.end_epoch(nets[number], summary, method_state, scalars)

    state.state = ensemble.each(end, state.state)


def _effective(
    ensemble: Ensemble, state: TrainingState
) -> tuple[Tree, Float[Tensor, " trials"] | None, Bool[Tensor, " trials"]]:
    """Return the parameters in effect, their training accuracy, and whether outputs are finite."""
    method, data = ensemble.method, ensemble.data
    effective = ensemble.mapped(
        lambda params, state, h: method.effective(ensemble.net(params, state), state, h)
    )
    with hooks_of_all(ensemble, "effective", state):
        params = effective(state.params, state.state, ensemble.scalars(state))
    if data.task != "classification":
        return (
            params,
            None,
            torch.ones(len(ensemble.trials), dtype=torch.bool, device=ensemble.device),
        )
    return params, *_accuracy(ensemble, params, state.state["buffers"], data.train)


def _report(ensemble: Ensemble, state: TrainingState, number: int) -> dict[str, float]:
    trial = ensemble.trials[number]
    if type(trial.method).report is Method.report:
        return {}
    h = {name: column[number] for name, column in ensemble.scalars(state).items()}
    with trial.guard("report", state.point, state.epoch):
        return trial.method.report(ensemble.nets(state)[number], take(state.state, number), h)


def _row(columns: dict[str, list[float] | None], number: int, epoch: int) -> dict[str, Any]:
    row: dict[str, Any] = {"epoch": epoch}
    for name, column in columns.items():
        value = math.nan if column is None else column[number]
        row[name] = None if math.isnan(value) and name != "loss" else value
    return row


def _accuracy(
    ensemble: Ensemble, params: Tree, buffers: Tree, split: Split
) -> tuple[Float[Tensor, " trials"], Bool[Tensor, " trials"]]:
    """Return the share of correct answers, and whether all answers are finite."""

    def judge(
        params: Tree, buffers: Tree, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = ensemble.skeleton.call(params, buffers, inputs)
        return Batch(inputs, targets).correct(outputs).sum(), outputs.isfinite().all()

    mapped = ensemble.mapped(judge, shared=2)
    size = ensemble.samples_at_once
    chunks = zip(split.inputs.split(size), split.targets.split(size), strict=True)
    total: Any = 0.0
    finite: Any = True
    for inputs, targets in chunks:
        correct, answers = mapped(params, buffers, inputs, targets)
        total, finite = total + correct, answers & finite
    return total / len(split), finite


def _finite(params: Tree, loss: Float[Tensor, " trials"]) -> Tensor:
    finite = loss.isfinite()
    for value in params.values():
        finite = finite & value.reshape(len(value), -1).isfinite().all(dim=1)
    return finite
