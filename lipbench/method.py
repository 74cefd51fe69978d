"""What a training method must provide."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.norm import Norm
from lipbench.threat import Box

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data
    from lipbench.networks.net import Net

State = dict[str, Any]
"""What a method carries from step to step: named tensors, or dictionaries of them.

The core keeps the buffers of the network under "buffers"; a method that calls `net.train` stores
the buffers it returns there. Names contain no slash.
"""
Params = dict[str, Tensor]
Scalars = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True, kw_only=True)
class Strength:
    """The field that the discrepancy principle may drive to reach a target accuracy."""

    field: str
    shrinks: bool = True
    """Whether more of it means a smaller Lipschitz constant, hence a lower accuracy."""
    least: float = 0.0
    """The smallest value it may take."""
    scale: float = 1.0
    """A value at which it begins to matter: smaller ones are moved by a share of this."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A Lipschitz constant that a method guarantees for the network it returns.

    A claim that says nothing raises ValueError: one of a constant that is infinite or no number,
    on a box that is none, or with a tolerance of 1 or more.
    """

    norm: Norm
    constant: float
    domain: Box | None = None
    tolerance: float = 0.0
    """Relative slack that the claim itself admits, for rounding of the stored weights."""

    def __post_init__(self) -> None:
        Norm(self.norm)
        if not (_is_number(self.constant) and 0 <= self.constant < math.inf):
            raise ValueError(
                f"a claimed constant is a number of at least 0, got {self.constant!r}."
            )
        if not (_is_number(self.tolerance) and 0 <= self.tolerance < 1):
            raise ValueError(
                "the tolerance of a claim is the share by which it may be exceeded, at least 0 and "
                f"less than 1, got {self.tolerance!r}."
            )
        if not self.allowed < math.inf:
            raise ValueError(f"a claimed constant of {self.constant!r} says nothing.")
        if self.domain is not None and not _is_box(self.domain):
            raise ValueError(
                f"a claim is on a box lo < hi or on all of space, got {self.domain!r}."
            )

    @property
    def allowed(self) -> float:
        """Return what the constant may be at most."""
        return self.constant * (1 + self.tolerance)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the core measured over one epoch of one trial."""

    epoch: int
    """Number of the epoch just finished, from 1."""
    epochs: int
    """Number of epochs of the run, or of this point of a path."""
    loss: float
    """Mean training objective over the epoch's batches."""
    train_accuracy: float
    """Share of training samples classified correctly after the last step; NaN for regression."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A recipe for training a network with a small Lipschitz constant.

    A method is its hyperparameters: its fields are the keys of `benchmarks.toml` and the column
    `params` of the results. A trailing underscore is not part of the key (`lambda_` is set as
    `lambda`). A subclass is final; to vary one, wrap it.

    The hooks `loss`, `ascend`, `project` and `effective` are called inside `torch.func.vmap` when
    `stackable` is True: they must be pure tensor code, take their randomness from `draw`, and
    never look at a value. All others are called for one trial at a time.

    `net` is a `lipbench.Net`; `h` holds the fields that may differ inside a stack (all float fields
    but norms), as 0-d tensors under their field names: hooks marked * read them there and not from
    `self`, where a field that differs in the stack raises. All other hooks are called on the
    trial's own method; but a strength that the core drives is found in `h` only.
    """

    stackable: ClassVar[bool] = False
    strength: ClassVar[Strength | None] = None

    @property
    def ascends(self) -> tuple[str, ...]:
        """Return the entries of State whose gradients the step's own backward pass also takes."""
        return ()

    @property
    def replays(self) -> int:
        """Return how many steps are taken on each batch; 1 but for free adversarial training."""
        return 1

    @property
    def cost(self) -> float:
        """Return roughly what a step costs, in steps of standard training; for estimates only."""
        return 1.0

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why the method cannot train this network on these data, or None."""
        return None

    def build(
        self, model: nn.Module, input_shape: tuple[int, ...], rng: torch.Generator
    ) -> nn.Module:
        """Return the network to train: `model` itself, or with layers replaced or rescaled.

        The code of one network serves a whole stack: numbers that come from float fields belong
        into its parameters and buffers, not into attributes of its layers.
        """
        return model

    def start(self, net: "Net", data: "Data", rng: torch.Generator) -> State:
        """Return the initial state of one trial, which keeps its names, shapes and dtypes.

        `data.batch_size` is the size of all batches but the last of an epoch.
        """
        return {}

    def begin_epoch(
        self, net: "Net", data: "Data", state: State, epoch: int, rng: torch.Generator
    ) -> State:
        """Return the state with which epoch `epoch` (from 1) begins; redraw pairs here."""
        return state

    def draw(self, batch: "Batch", rng: torch.Generator) -> dict[str, Tensor]:
        """Return every random tensor that one step needs, from the trial's own stream."""
        return {}

    @abstractmethod
    def loss(
        self, net: "Net", batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the objective of a step, to be minimised in the parameters, and the state."""

    def ascend(self, state: State, gradients: dict[str, Tensor], h: Scalars) -> State:
        """Return the state moved along the gradients of the entries named in `ascends`."""
        return state

    def project(self, net: "Net", state: State, h: Scalars) -> tuple[Params, State]:
        """Return the parameters after an optimiser step, moved back to the allowed set."""
        return net.params, state

    def end_epoch(self, net: "Net", summary: Summary, state: State, h: Scalars) -> State:
        """Return the state with which training goes on after an epoch.

        The network is measured after it, so that a change of `effective` counts. A method that
        is not stackable may do anything here, for example solve a semidefinite program in numpy.
        """
        return state

    def report(self, net: "Net", state: State, h: Scalars) -> dict[str, float]:
        """Return numbers of the method's own that are worth a column of train.csv, each epoch."""
        return {}

    def effective(self, net: "Net", state: State, h: Scalars) -> Params:
        """Return the parameters of the network that training stands for at this moment.

        It is what the selection of a checkpoint measures. For a method that trains the
        parameters it returns, they are `net.params`.
        """
        return net.params

    def finish(self, net: "Net", state: State, data: "Data", h: Scalars) -> Params:
        """Return the parameters to save and judge; called once for each saved checkpoint.

        Iterations that training left unfinished, such as power iterations, converge here.
        """
        return self.effective(net, state, h)

    def claims(self, net: "Net") -> Claim | None:
        """Return the Lipschitz constant that the method guarantees for a finished network.

        A strength that the core drove has its final value in `self` here.
        The core proves or refutes it with its own bounds.
        """
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_box(domain: Box) -> bool:
    lo, hi = domain
    return lo < hi and math.isfinite(hi - lo)
