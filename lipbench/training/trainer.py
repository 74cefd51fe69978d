"""Trainer: a stack of trials, trained as one program."""

import math
import time
from collections.abc import Callable

import torch

from lipbench.data.splits import Data
from lipbench.method import Method
from lipbench.model import Model
from lipbench.networks.net import Net
from lipbench.networks.trees import Tree, stack, take
from lipbench.seeds import stream
from lipbench.training.checkpoint_choice import Choice
from lipbench.training.ensemble import Ensemble, TrainingState
from lipbench.training.epoch import train_epoch, training_step
from lipbench.training.epoch_end import Score, measure_epoch, snapshot
from lipbench.training.trial import Checkpoint, Outcome, Trial


class Trainer:
    """Trains the trials of one stack; a trial alone is a stack of one.

    All trials share model, data, batch size and method class. The hooks of a stackable method run
    for all trials at once inside `torch.func.vmap`.
    """

    def __init__(
        self, trials: list[Trial], model: Model, data: Data, score: Score | None = None
    ) -> None:
        """Build the networks.

        Args:
            trials: The stack; their `shared()` must be equal.
            model: The architecture.
            data: The data set, on the device to train on.
            score: What to choose checkpoints by; None chooses the last.

        Raises:
            TrainingRefused: If the method refuses the network or the data.
            ValueError: If the trials cannot be stacked.
        """
        self.trials, self.score = trials, score
        self.ensemble = Ensemble(trials, model, data)
        self.training = self.ensemble.training
        self.step = training_step(self.ensemble)

    def begin(self) -> TrainingState:
        """Return the training state of a stack that has not taken a step."""
        count = len(self.trials)
        state = TrainingState(
            params=stack([dict(params) for params, _ in self.ensemble.initial]),
            streams={
                "order": [stream(trial.seed, "order") for trial in self.trials],
                "method": [stream(trial.seed, "method", trial.entry.name) for trial in self.trials],
            },
            choices=[
                Choice(trial.entry.target_accuracy, self.training.warmup, [])
                for trial in self.trials
            ],
            snapshots=[{} for _ in range(count)],
            histories=[[] for _ in range(count)],
            ended=[None] * count,
        )
        self._start_point(state)
        return state

    def run(
        self,
        state: TrainingState,
        after_epoch: Callable[[TrainingState], None] = lambda state: None,
    ) -> list[Outcome]:
        """Train to the end from where `state` stands.

        Returns:
            What became of each trial.
        """
        points = len(self.trials[0].points)
        while state.point < points:
            while state.epoch < self.training.epochs and None in state.ended:
                began = time.perf_counter()
                loss, batch_accuracy = train_epoch(self.ensemble, state, self.step)
                measure_epoch(self.ensemble, state, loss, batch_accuracy, self.score)
                state.epoch += 1
                self._synchronise()
                state.seconds += time.perf_counter() - began
                after_epoch(state)
            self._end_point(state)
            state.point += 1
            state.epoch = 0
            if state.point < points:
                self._start_point(state)
        return [self._outcome(state, number) for number in range(len(self.trials))]

    def _start_point(self, state: TrainingState) -> None:
        """Set the optimiser, the strengths and the methods' states for a point of the path."""
        ensemble = self.ensemble
        state.moments = ensemble.each(
            lambda number, params: self.training.optimizer.start(params), state.params
        )
        law = ensemble.method.strength
        if law is not None:
            points = [trial.points[state.point] for trial in self.trials]
            defaults = [float(getattr(trial.method, law.field)) for trial in self.trials]
            pairs = zip(defaults, points, strict=True)
            values = [default if point is None else point for default, point in pairs]
            state.course = ensemble.discrepancy.start(ensemble.column(values))
        before = state.state

        def start(number: int, params: Tree) -> Tree:
            trial, rng = self.trials[number], state.streams["method"][number]
            buffers = take(before["buffers"], number) if before else ensemble.initial[number][1]
            net = Net(ensemble.skeleton, params, buffers)
            if type(trial.method).start is Method.start:
                return {"buffers": buffers}
            with trial.guard("start", state.point):
                return {"buffers": buffers, **trial.method.start(net, ensemble.data, rng)}

        state.state = ensemble.each(start, state.params)

    def _end_point(self, state: TrainingState) -> None:
        for number, trial in enumerate(self.trials):
            if state.ended[number] is None:
                last = state.histories[number][-1]
                name = f"path:{state.point}" if trial.entry.path else "last"
                kept = snapshot(self.ensemble, state, number, last)
                state.snapshots[number][name] = kept

    def _outcome(self, state: TrainingState, number: int) -> Outcome:
        trial, ended = self.trials[number], state.ended[number]
        checkpoints = {}
        if ended is None:
            snapshots = state.snapshots[number]
            checkpoints = {
                name: self._finish(trial, name, kept) for name, kept in snapshots.items()
            }
            if trial.entry.path:
                checkpoints["last"] = checkpoints[f"path:{len(trial.entry.path) - 1}"]
            checkpoints["chosen"] = checkpoints["last"]
            choice = state.choices[number].chosen()
            if choice is not None:
                best, flags = choice
                checkpoints["chosen"] = self._finish(
                    trial, "chosen", best.snapshot, best.score, flags
                )
        return Outcome(
            state="done" if ended is None else "nan",
            message="" if ended is None else f"a number was not finite after epoch {ended}",
            checkpoints=checkpoints,
            history=state.histories[number],
            seconds=state.seconds / len(self.trials),
            forwards=state.forwards,
            gradients=state.gradients,
        )

    def _finish(
        self,
        trial: Trial,
        name: str,
        kept: Tree,
        score: float | None = None,
        flags: tuple[str, ...] = (),
    ) -> Checkpoint:
        net = self.ensemble.net(kept["params"], kept["state"])
        with trial.guard("finish", name):
            params = trial.method.finish(net, kept["state"], self.ensemble.data, kept["h"])
        numbers = {
            key: None if math.isnan(float(value)) else float(value)
            for key, value in kept["numbers"].items()
        }
        return Checkpoint(
            params={name: value.detach() for name, value in params.items()},
            buffers=net.buffers,
            epoch=int(numbers["epoch"] or 0),
            strength=numbers["strength"],
            train_accuracy=numbers["train_accuracy"],
            validation_score=None if score is None or math.isnan(score) else score,
            flags=flags,
        )

    def _synchronise(self) -> None:
        if self.ensemble.device.type == "cuda":
            torch.cuda.synchronize(self.ensemble.device)
