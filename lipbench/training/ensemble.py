"""The trials of one stack: their networks, what they share, and how far they are."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from lipbench.data.splits import Data
from lipbench.model import Model
from lipbench.networks.anatomy import anatomy
from lipbench.networks.net import Meter, Net, Skeleton
from lipbench.networks.network_stack import Networks
from lipbench.networks.trees import Tree, stack, take, tree_map
from lipbench.refused import Refused
from lipbench.training.as_written import misfit
from lipbench.training.checkpoint_choice import Choice
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.trial import Trial, representative
from lipbench.training.untrained import prepared, untrained

_SAMPLES_AT_ONCE = 8192
"""Of all trials together; more are no faster."""


class TrainingRefused(Exception):
    """A method cannot train this network on these data; the message says why."""


@dataclass
class TrainingState:
    """Where a stack stands: all that a resumed run needs to end with the same bits.

    Trees have a leading trial axis; lists have one entry per trial.
    """

    point: int = 0
    """Index into the strengths of the path."""
    epoch: int = 0
    """Epochs finished at this point."""
    params: Tree = field(default_factory=dict)
    moments: Tree = field(default_factory=dict)
    state: Tree = field(default_factory=dict)
    course: Tree = field(default_factory=dict)
    """The strengths, as the discrepancy principle keeps them."""
    streams: dict[str, list[torch.Generator]] = field(default_factory=dict)
    choices: list[Choice[Tree]] = field(default_factory=list)
    snapshots: list[dict[str, Tree]] = field(default_factory=list)
    """The network at the end of each point, with what was measured there."""
    histories: list[list[dict[str, Any]]] = field(default_factory=list)
    """One row per epoch, as train.csv has it."""
    ended: list[int | None] = field(default_factory=list)
    """The epoch in which a number stopped being finite, or None."""
    seconds: float = 0.0
    forwards: int = 0
    gradients: int = 0


class Ensemble:
    """Networks that are trained together: the same code and data, other numbers."""

    def __init__(self, trials: list[Trial], model: Model, data: Data) -> None:
        """Build the networks.

        Raises:
            TrainingRefused: If the method refuses the network or the data.
            ValueError: If the trials cannot be stacked.
        """
        first = trials[0]
        if any(trial.shared() != first.shared() for trial in trials):
            raise ValueError("the trials of a stack may differ in seeds and real numbers only.")
        if not first.method.stackable and len(trials) > 1:
            raise ValueError(f"{first.entry.name} is not stackable: train its trials one by one.")
        self.trials, self.training = trials, first.entry.training
        self.method = representative(trials)
        self.data = replace(data, batch_size=min(self.training.batch_size, len(data.train)))
        self.discrepancy = first.entry.discrepancy or Discrepancy()
        self.device, self.dtype = data.train.inputs.device, data.train.inputs.dtype
        self.meter = Meter()
        self.model = model
        modules = [self._build(trial) for trial in trials]
        self.skeleton = Skeleton(modules[0], data.dataset.input_shape)
        self.trained = self.skeleton
        """The same code in the precision of the training steps."""
        if self.training.precision != "full":
            shape, precision = data.dataset.input_shape, self.training.precision
            self.trained = Skeleton(modules[0], shape, precision)
        self.initial = [
            (
                {name: value.detach() for name, value in module.named_parameters()},
                dict(module.named_buffers()),
            )
            for module in modules
        ]

    def _build(self, trial: Trial) -> nn.Module:
        dataset = self.data.dataset
        try:
            module = untrained(self.model, dataset, trial.seed)
        except Refused as error:
            raise TrainingRefused(str(error)) from error
        if trial is self.trials[0]:  # the others have the same code
            self._refuse_misfit(module)
        with trial.guard("refuses", network=module):
            reason = trial.method.refuses(module, self.data)
        if reason is not None:
            raise TrainingRefused(f"{trial.entry.name} refuses: {reason}.")
        try:
            built = prepared(trial.entry, module, dataset.input_shape, trial.seed)
        except Refused as error:
            raise TrainingRefused(f"{trial.entry.name} refuses: {error}") from error
        # A copy: whoever built it may have kept it.
        return copy.deepcopy(built).to(self.device, self.dtype)

    def _refuse_misfit(self, module: nn.Module) -> None:
        try:
            reason = misfit(module, self.data)
        except Refused as error:
            reason = str(error)
        if reason is not None:
            raise TrainingRefused(f"model {type(self.model).__name__}: {reason}")

    @cached_property
    def samples_at_once(self) -> int:
        """Return how many samples every network is asked about at a time."""
        fitting = anatomy(self.model, self.data.dataset).samples_that_fit(self.device)
        return max(1, min(_SAMPLES_AT_ONCE // len(self.trials), fitting))

    @cached_property
    def _constants(self) -> dict[str, Float[Tensor, " trials"]]:
        # Once: a copy to the device waits for all that is going on there.
        return {
            name: self.column([trial.scalars()[name] for trial in self.trials])
            for name in self.trials[0].scalars()
        }

    @cached_property
    def _targets(self) -> Float[Tensor, " trials"]:
        targets = [trial.entry.target_accuracy for trial in self.trials]
        return self.column([math.nan if value is None else value for value in targets])

    def column(self, values: list[float]) -> Float[Tensor, " trials"]:
        """Return one number per trial as a tensor."""
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def scalars(self, state: TrainingState) -> dict[str, Float[Tensor, " trials"]]:
        """Return the fields of the methods that may differ, the strength at its present value."""
        driven = {}
        if self.method.strength is not None:
            driven[self.method.strength.field] = state.course["strength"]
        return {**self._constants, **driven}

    def net(self, params: Tree, state: Tree) -> Net:
        """Return the network of one trial with these numbers; its calls are not counted."""
        return Net(self.skeleton, params, state.get("buffers", {}))

    def nets(self, state: TrainingState) -> list[Net]:
        """Return the networks of all trials."""
        return [
            self.net(take(state.params, number), take(state.state, number))
            for number in range(len(self.trials))
        ]

    def networks(self, params: Tree, state: Tree, numbers: list[int]) -> Networks:
        """Return some of the trials as networks that can be judged; their calls are not counted."""
        buffers = state.get("buffers", {})
        if len(numbers) < len(self.trials):
            params, buffers = (tree_map(lambda v: v[numbers], tree) for tree in (params, buffers))
        return Networks(self.skeleton.call, params, buffers)

    def drives(self, every: str, measure: str | None = None) -> bool:
        """Return whether the strength moves `every` epoch or step, by this measure if given."""
        driven = self.trials[0].entry.target_accuracy is not None
        same = measure is None or self.discrepancy.measure == measure
        return driven and self.discrepancy.every == every and same

    @property
    def measures_batches(self) -> bool:
        """Return whether the accuracy on each batch after its step is needed."""
        return self.drives("step") or self.drives("epoch", "batch")

    def move(self, state: TrainingState, accuracy: Float[Tensor, " trials"]) -> None:
        """Move the strengths after a comparison of accuracies and targets."""
        law = self.method.strength
        assert law is not None
        state.course = self.discrepancy.move(state.course, accuracy, self._targets, law)

    def mapped(self, function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
        """Return `function` for all trials at once; its last `shared` arguments have no trials."""
        if self.method.stackable:

            def stacked(*arguments: Any) -> Any:
                axes = tuple([0] * (len(arguments) - shared) + [None] * shared)
                return vmap(function, in_dims=axes)(*arguments)

            return stacked

        def alone(*arguments: Any) -> Any:
            cut = len(arguments) - shared
            unstacked = take(arguments[:cut], 0)
            return tree_map(
                lambda value: value.unsqueeze(0), function(*unstacked, *arguments[cut:])
            )

        return alone

    def each(self, function: Callable[..., Tree], *trees: Tree) -> Tree:
        """Return the stacked results of `function`, called with each trial's number and trees."""
        return stack(
            [
                function(number, *(take(tree, number) for tree in trees))
                for number in range(len(self.trials))
            ]
        )
