"""CLIP: cheap Lipschitz training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.lipschitz.lower_bounds.pair_momentum import ascend_with_memory, nothing
from lipbench.lipschitz.lower_bounds.pairs import Pairs, ascend, climb, quotients
from lipbench.method import Method, Scalars, State, Strength
from lipbench.method_families.penalty import parameter_penalty
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, between, optional, positive, require
from lipbench.threat import Box

if TYPE_CHECKING:
    from lipbench.data.splits import Batch, Data


@dataclass(frozen=True, kw_only=True)
class CLIP(Method):
    """Penalise the Lipschitz constant as it is seen at pairs of inputs that climb towards it.

    The objective is loss + lambda·Lip(f, X_Lip) + mu·‖θ‖ with Lip(f, X_Lip) the largest quotient
    ‖f(u) - f(v)‖ / ‖u - v‖ over the pairs. The pairs start from samples set aside for them and
    noisy copies, and take a gradient step up their own quotient before each step of the weights.
    The penalty sees a lower bound of the constant, so the method guarantees nothing.

    Source:
        Bungert, Raab, Roith, Schwinn, Tenbrinck, CLIP: Cheap Lipschitz Training of Neural
        Networks (2021), eq. (2), (5), (6), Algorithms 1 and 2. What the paper leaves open
        (step size, accept test, noise of the pairs, their number) are fields.
    """

    stackable: ClassVar[bool] = True
    strength: ClassVar[Strength] = Strength(field="lambda_", scale=0.2)

    lambda_: float = 0.0
    """Weight of the Lipschitz term; where the discrepancy principle starts."""
    mu: float = 0.0
    """Weight of the norm of all parameters beside it, eq. (6)."""
    power: Literal[1, 2] = 1
    """1 penalises Lip, as the paper; 2 its square, as the authors' code."""
    aggregate: Literal["max", "mean", "topk"] = "max"
    """The pairs whose quotients count: the largest, all, or the `topk` largest (their mean)."""
    topk: int = 8
    pairs: int | None = 64
    """How many pairs; None takes the whole pair set."""
    update: Literal["accept", "plain", "free", "fixed"] = "accept"
    """How the pairs climb. `accept` undoes a step that lowers the quotient and adapts the step
    size of each pair. `plain` takes every step, as Algorithm 1. `free` uses the backward pass of
    the weights for the pairs too, so that only pairs that count move. `fixed` pairs never climb:
    with `redraw` they are the sets to hold the others against."""
    ascent: Literal["gradient", "nesterov", "adam"] = "gradient"
    """What a climbing pair follows: L·∇L, or a direction that remembers earlier steps, which the
    paper leaves to future work. With `adam` tau is in pixels: 0.01 suits it better."""
    momentum: float = 0.9
    """How much of their mean slope `nesterov` and `adam` keep from step to step."""
    tau: float = 1.0
    """Step size of the pairs in x ← x + tau·L·∇L; the first one with `accept`."""
    factor: float = 1.3
    """Growth and decay of the step size with `accept`."""
    noise: float = 0.1
    """Pixel units: v = u + noise·U[0, 1) per coordinate, or noise times a standard normal."""
    noise_kind: Literal["uniform", "gaussian"] = "uniform"
    refresh: int = 2000
    """Steps after which the pairs are drawn afresh, at the next beginning of an epoch: 1 is each
    epoch. Fresh pairs see a smaller constant until they have climbed: the accuracy jumps."""
    redraw: Literal["refresh", "step"] = "refresh"
    """When the pairs are drawn afresh: after `refresh` steps, or before every step."""
    project_pairs: bool = False
    """Keep the pairs in the box of valid inputs; the paper does not."""

    def __post_init__(self) -> None:
        require(
            at_least("lambda", self.lambda_, 0),
            at_least("mu", self.mu, 0),
            positive("tau", self.tau),
            positive("noise", self.noise),
            at_least("topk", self.topk, 1),
            optional(at_least, "pairs", self.pairs, 1),
            at_least("refresh", self.refresh, 1),
            (self.factor > 1, f"factor must be more than 1, got {self.factor}"),
            between("momentum", self.momentum, 0, 1, without_high=True),
            *self._combinations(),
        )

    def _combinations(self) -> tuple[Rule, ...]:
        free, remembers = self.update == "free", self.ascent != "gradient"
        return (
            (
                not (self.project_pairs and free),
                "project_pairs cannot be had with update = 'free': leave one out",
            ),
            (
                not (remembers and self.update in ("free", "fixed")),
                f"ascent = {self.ascent!r} cannot be had with update = {self.update!r}: "
                "set update to 'accept' or 'plain'",
            ),
            (
                not (self.redraw == "step" and (free or remembers)),
                "redraw = 'step' cannot be had with update = 'free' or an ascent that remembers "
                f"earlier steps, got update = {self.update!r} and ascent = {self.ascent!r}",
            ),
        )

    @property
    def ascends(self) -> tuple[str, ...]:
        """Return the parts of the pairs that the step's own backward pass moves."""
        return ("total", "difference") if self.update == "free" else ()

    @property
    def cost(self) -> float:
        """Return the passes over pairs beside those over a batch of about 128 samples."""
        passes = {"accept": 4 / 3, "plain": 2.0, "free": 1.0, "fixed": 1.0}[self.update]
        return 1 + 2 * (self.pairs or 6000) / 128 * passes

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there are no pairs, or None."""
        if data.dataset.pair_sampler:
            unbounded = "the data set samples its pairs, so their number must be set: give pairs"
            return unbounded if self.pairs is None else None
        needed = self.pairs or 1
        if len(data.pairs) >= needed:
            return None
        return (
            f"it needs {needed} pair samples and the data set has pair_size = {len(data.pairs)}: "
            "raise pair_size or lower pairs"
        )

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return fresh pairs."""
        u, v = self._fresh(data, rng)
        step = torch.full((len(u),), self.tau, dtype=u.dtype, device=u.device)
        age = torch.zeros((), dtype=torch.int64, device=u.device)
        pairs = Pairs.of(u, v, step)
        state: State = _entries(pairs, torch.zeros_like(step)) | {"age": age}
        if self.ascent != "gradient":
            state["memory"] = nothing(self.ascent, pairs)
        return state

    def begin_epoch(
        self, net: Net, data: "Data", state: State, epoch: int, rng: torch.Generator
    ) -> State:
        """Return the state, with fresh pairs if these have climbed `refresh` steps."""
        if int(state["age"]) >= self.refresh:
            return {**state, **self.start(net, data, rng)}
        return state

    def draw(self, batch: "Batch", rng: torch.Generator) -> dict[str, Tensor]:
        """Return the ends of fresh pairs, where each step has its own."""
        if self.redraw == "refresh":
            return {}
        assert batch.data is not None
        u, v = self._fresh(batch.data, rng)
        return {"u": u, "v": v}

    def loss(
        self, net: Net, batch: "Batch", state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the objective after the pairs have climbed, and the pairs."""
        if self.redraw == "step":
            step = torch.zeros_like(state["step"]) + h["tau"]
            fresh = Pairs.of(draw["u"], draw["v"], step)
            state = {**state, **_entries(fresh, state["quotient"])}
        lipschitz, climbed = self._lipschitz_term(net, batch, state, h)
        outputs, buffers = net.train(batch.inputs)
        norm = parameter_penalty(net.params, power=1, biases=True)
        value = batch.loss(outputs) + lipschitz + h["mu"] * norm
        age = state["age"] + 1
        return value, {**state, **climbed, "age": age, "buffers": buffers}

    def ascend(self, state: State, gradients: dict[str, Tensor], h: Scalars) -> State:
        """Return the state after the pairs' step in the `free` form."""
        quotient = state["quotient"]
        # From the gradient of the aggregate to that of each pair's own squared quotient.
        factor = 2 * quotient if self.power == 1 else torch.ones_like(quotient)
        scale = self._count(len(quotient)) * factor
        towards = [
            gradients[key] * scale.view(-1, *[1] * (gradients[key].ndim - 1))
            for key in self.ascends
        ]
        return {**state, **_entries(climb(_pairs(state), *towards), quotient)}

    def _lipschitz_term(
        self, net: Net, batch: "Batch", state: State, h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        current = _pairs(state, batch.box if self.project_pairs else None)
        if self.update == "free":
            return self._term_with_pairs(net, current, h["lambda_"])
        accept = self.update == "accept"
        net = net.exact
        if self.update == "fixed":
            values = quotients(net.stem or net, current)
            return h["lambda_"] * self._aggregate(values), _entries(current, values.detach())
        frozen, remembered = net.frozen, {}
        if self.ascent == "gradient":
            current, climbed = ascend(
                frozen.stem or frozen, current, accept=accept, factor=h["factor"]
            )
        else:
            current, memory, climbed = ascend_with_memory(
                frozen.stem or frozen,
                current,
                state["memory"],
                rule=self.ascent,
                decay=h["momentum"],
                accept=accept,
                factor=h["factor"],
            )
            remembered = {"memory": memory}
        net.meter.gradients += 2 * len(climbed)
        # With the accept test the quotients of the moved pairs are known, and only those pairs
        # that count need a pass with gradients in the weights.
        counted = current.top(climbed, self._count(len(climbed))) if accept else current
        term = h["lambda_"] * self._aggregate(quotients(net.stem or net, counted))
        return term, _entries(current, climbed) | remembered

    def _fresh(self, data: "Data", rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return both ends of pairs that are drawn."""
        u = data.base_points(self.pairs, rng)
        draw = torch.rand if self.noise_kind == "uniform" else torch.randn
        v = u + self.noise * draw(u.shape, generator=rng, dtype=u.dtype).to(u.device)
        if self.project_pairs and data.box is not None:
            v = v.clamp(*data.box)
        return u, v

    def _term_with_pairs(
        self, net: Net, current: Pairs, weight: Float[Tensor, ""]
    ) -> tuple[Float[Tensor, ""], State]:
        # The weights go in as themselves and come back with their gradient times lambda, the
        # pairs with theirs unscaled, so that they climb at lambda = 0 too: one backward pass.
        weighted = {
            name: value.detach() + weight * (value - value.detach())
            for name, value in net.params.items()
        }
        net = net.exact.with_params(weighted)
        values = quotients(net.stem or net, current)
        term = self._aggregate(values)
        value = weight * term.detach() + (term - term.detach())
        return value, {"quotient": values.detach()}

    def _count(self, pairs: int) -> int:
        return {"max": 1, "mean": pairs, "topk": min(self.topk, pairs)}[self.aggregate]

    def _aggregate(self, values: Float[Tensor, " pairs"]) -> Float[Tensor, ""]:
        return values.topk(self._count(len(values))).values.pow(self.power).mean()


def _pairs(state: State, box: Box | None = None) -> Pairs:
    return Pairs(state["total"], state["difference"], state["step"], box)


def _entries(pairs: Pairs, quotient: Float[Tensor, " pairs"]) -> State:
    entries = {"total": pairs.total, "difference": pairs.difference, "step": pairs.step}
    return {**entries, "quotient": quotient}
