"""Laplacian smoothing: a Lipschitz constraint on the edges of a graph, by dual ascent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.data.splits import Batch
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.neighbour_graph import nearest, random_neighbours
from lipbench.networks.net import Net
from lipbench.ranges import at_least, finite_at_least, finite_positive, require

if TYPE_CHECKING:
    from lipbench.data.splits import Data


@dataclass(frozen=True, kw_only=True)
class LaplacianSmoothing(Method):
    """Minimise the loss where ‖f(x) - f(x')‖ ≤ a·‖x - x'‖ on the edges of a graph on the data.

    Each sample i has edges to `neighbours` others, and each edge a multiplier q_ij ≥ 0. The weights
    minimise, and the multipliers maximise, the Lagrangian of the mean loss,

        1/n·Σ_i [ l_i + Σ_j q_ij·(‖f_i - f_j‖² - a²·‖x_i - x_j‖²) ],

    whose part in f is the energy of the graph Laplacian with weights q. Once an epoch, when i is in
    the batch, q_ij ← max(0, q_ij + step·(‖f_i - f_j‖² - a²·‖x_i - x_j‖²)): where the constraint
    holds with room to spare, q falls back to 0 and the edge costs nothing. The outputs on the edges
    are those of the network in evaluation mode.

    Nothing is said of points off the graph, and on it the constraint holds in the limit only: the
    method claims no constant.

    Source:
        Krishnan, Al Makdah, Pasqualetti, Lipschitz Bounds and Provably Robust Training by
        Laplacian Smoothing (2020): the saddle point of the Lagrangian, its discretisation on a
        graph and the primal-dual iteration. Mean and not sum over samples, the choice of the edges
        and the values of `step` and a are this project's.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="bound", shrinks=False, least=1e-3, scale=0.5)

    bound: float = 2.0
    """a, the Lipschitz constant in l2 that is asked for on the edges, per pixel."""
    step: float = 0.01
    """Step of the multipliers, once an epoch; 0 leaves them at 0 and is standard training."""
    neighbours: int = 4
    """Edges from each training sample."""
    graph: Literal["nearest", "random"] = "nearest"
    """Where they lead: to the nearest others, or to others that are drawn once. The nearest are
    mostly of the same class: even a tiny bound costs little accuracy and does little elsewhere (on
    the digits a quotient of 30 was left), where random edges reach from class to class (10)."""
    among: int | None = 4096
    """Training samples, drawn once, among which the nearest are looked for; None takes all."""

    def __post_init__(self) -> None:
        require(
            finite_positive("bound", self.bound),
            finite_at_least("step", self.step, 0),
            at_least("neighbours", self.neighbours, 1),
            (
                self.among is None or self.among > self.neighbours,
                f"among must be more than neighbours = {self.neighbours}, got {self.among}",
            ),
        )

    @property
    def cost(self) -> float:
        """Return the cost of a step in steps of standard training."""
        return 2.3 + 0.65 * self.neighbours

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why samples have too few others, or None."""
        if self.neighbours < len(data.train):
            return None
        return f"each of {len(data.train)} samples has fewer than {self.neighbours} others"

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return the graph, and multipliers 0."""
        inputs, count = data.train.inputs, self.neighbours
        if self.graph == "random":
            rows = random_neighbours(len(inputs), count, rng).to(inputs.device)
        elif self.among is None or self.among >= len(inputs):
            rows = nearest(inputs, count)
        else:
            chosen = torch.randperm(len(inputs), generator=rng)[: self.among]
            rows = nearest(inputs, count, chosen.to(inputs.device))
        return {"neighbours": rows, "multipliers": torch.zeros_like(rows, dtype=inputs.dtype)}

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the Lagrangian on the batch and its edges, and their multipliers after a step."""
        assert batch.index is not None
        outputs, buffers = net.train(batch.inputs)
        multipliers = state["multipliers"].index_select(0, batch.index)
        excess = self._excess(net.exact, batch, state["neighbours"], h["bound"])
        value = batch.loss(outputs) + (multipliers * excess).sum(dim=1).mean()
        risen = (multipliers + h["step"] * excess.detach()).clamp_min(0)
        rows = batch.index.unsqueeze(1).expand_as(risen)
        fresh = state["multipliers"].scatter(0, rows, risen)
        return value, {**state, "multipliers": fresh, "buffers": buffers}

    def _excess(
        self, net: Net, batch: Batch, neighbours: Tensor, bound: Float[Tensor, ""]
    ) -> Float[Tensor, "batch neighbours"]:
        assert batch.data is not None
        assert batch.index is not None
        rows = neighbours.index_select(0, batch.index)
        adjacent = batch.data.train.inputs.index_select(0, rows.flatten())
        values = net(torch.cat([batch.inputs, adjacent]))
        size = len(batch.inputs)
        rise = values[:size].unsqueeze(1) - values[size:].unflatten(0, rows.shape)
        run = batch.inputs.flatten(1).unsqueeze(1) - adjacent.flatten(1).unflatten(0, rows.shape)
        return rise.square().sum(dim=2) - bound.square() * run.square().sum(dim=2)
