"""Train a stack of trials as one program."""

import math
import time
from collections.abc import Callable

import torch

from lipbench.data.splits import Data
from lipbench.model import Model
from lipbench.networks.net import Net
from lipbench.networks.trees import Tree, stack, take
from lipbench.seeds import stream
from lipbench.training.checkpoint_choice import Choice
from lipbench.training.ensemble import Ensemble, TrainingState
from lipbench.training.epoch import train_epoch, training_step
from lipbench.training.epoch_end import Score, snapshot, survey
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
        """Return the progress of a stack that has not taken a step."""
        count = len(self.trials)
        progress = TrainingState(
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
        self._start_point(progress)
        return progress

    def run(
        self,
        progress: TrainingState,
        after_epoch: Callable[[TrainingState], None] = lambda progress: None,
    ) -> list[Outcome]:
        """Train to the end from where `progress` stands.

        Returns:
            What became of each trial.
        """
        points = len(self.trials[0].points)
        while progress.point < points:
            while progress.epoch < self.training.epochs and None in progress.ended:
                began = time.perf_counter()
                loss, batch_accuracy = train_epoch(self.ensemble, progress, self.step)
                survey(self.ensemble, progress, loss, batch_accuracy, self.score)
                progress.epoch += 1
                self._synchronise()
                progress.seconds += time.perf_counter() - began
                after_epoch(progress)
            self._end_point(progress)
            progress.point += 1
            progress.epoch = 0
            if progress.point < points:
                self._start_point(progress)
        return [self._outcome(progress, number) for number in range(len(self.trials))]

    def _start_point(self, progress: TrainingState) -> None:
        """Set the optimiser, the strengths and the methods' states for a point of the path."""
        ensemble = self.ensemble
        progress.moments = ensemble.each(
            lambda number, params: self.training.optimizer.start(params), progress.params
        )
        law = ensemble.method.strength
        if law is not None:
            points = [trial.points[progress.point] for trial in self.trials]
            defaults = [float(getattr(trial.method, law.field)) for trial in self.trials]
            pairs = zip(defaults, points, strict=True)
            values = [default if point is None else point for default, point in pairs]
            progress.course = ensemble.discrepancy.start(ensemble.column(values))
        before = progress.state

        def start(number: int, params: Tree) -> Tree:
            trial, rng = self.trials[number], progress.streams["method"][number]
            buffers = take(before["buffers"], number) if before else ensemble.initial[number][1]
            net = Net(ensemble.skeleton, params, buffers)
            return {"buffers": buffers, **trial.method.start(net, ensemble.data, rng)}

        progress.state = ensemble.each(start, progress.params)

    def _end_point(self, progress: TrainingState) -> None:
        for number, trial in enumerate(self.trials):
            if progress.ended[number] is None:
                last = progress.histories[number][-1]
                name = f"path:{progress.point}" if trial.entry.path else "last"
                kept = snapshot(self.ensemble, progress, number, last)
                progress.snapshots[number][name] = kept

    def _outcome(self, progress: TrainingState, number: int) -> Outcome:
        trial, ended = self.trials[number], progress.ended[number]
        checkpoints = {}
        if ended is None:
            snapshots = progress.snapshots[number]
            checkpoints = {name: self._finish(trial, kept) for name, kept in snapshots.items()}
            if trial.entry.path:
                checkpoints["last"] = checkpoints[f"path:{len(trial.entry.path) - 1}"]
            checkpoints["chosen"] = checkpoints["last"]
            choice = progress.choices[number].chosen()
            if choice is not None:
                best, flags = choice
                checkpoints["chosen"] = self._finish(trial, best.snapshot, best.score, flags)
        return Outcome(
            state="done" if ended is None else "nan",
            message="" if ended is None else f"a number was not finite after epoch {ended}",
            checkpoints=checkpoints,
            history=progress.histories[number],
            seconds=progress.seconds / len(self.trials),
            forwards=progress.forwards,
            gradients=progress.gradients,
        )

    def _finish(
        self, trial: Trial, kept: Tree, score: float | None = None, flags: tuple[str, ...] = ()
    ) -> Checkpoint:
        net = self.ensemble.net(kept["params"], kept["state"])
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
