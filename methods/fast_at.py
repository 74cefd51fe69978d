"""Fast adversarial training: FGSM from a random start, watched for catastrophic overfitting."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipbench.adversarial.worst_case import around, climb, error, placed, unit_offsets
from lipbench.data.splits import Batch
from lipbench.method import Params, Scalars, State, Strength, Summary
from lipbench.method_families.adversarial_training import AdversarialTraining
from lipbench.networks.net import Net
from lipbench.ranges import Rule, at_least, positive

if TYPE_CHECKING:
    from lipbench.data.splits import Data

_PROBE_STEPS = 5
_PROBE_STEP = 0.25
"""In units of epsilon, as the authors' code attacks its batch."""


@dataclass(frozen=True, kw_only=True)
class FastTraining(AdversarialTraining):
    """Minimise the loss one long step away from a random point of the ball.

    The objective is the mean of loss(f(x'), y) with x' = Π(x + d + rel_step·epsilon·sign ∇loss)
    and d drawn from the ball; in the l2 norm the gradient is divided by its length. Π goes back
    to the ball and to the box of valid inputs; the gradient is taken in evaluation mode.

    Such training can fail from one epoch to the next: the network learns to be flat along one
    step, and its accuracy under attacks of more steps falls to nothing ("catastrophic
    overfitting"). So after each epoch the first `probe` training samples are attacked with five
    steps. Their accuracy is the column `probe_accuracy`; once it has fallen by more than `drop`
    within an epoch, `collapsed` is 1. With `stop` the network from before that epoch is then kept
    to the end. The method guarantees nothing.

    Works with any loss if `probe` is 0.

    Source:
        Wong, Rice, Kolter, Fast is better than free: Revisiting adversarial training (2020),
        Algorithm 3 and section 5.4, with the numbers for MNIST; those of the watch are the
        authors' code for CIFAR-10, where it is off unless asked for. The l2 form and `ramp`
        are ours.
    """

    strength: ClassVar[Strength] = Strength(field="epsilon", scale=0.02)

    epsilon: float = 0.3
    """Radius of the ball, in pixel units of `norm`; where the discrepancy principle starts."""
    rel_step: float = 1.25
    """Length of the step in units of epsilon: 0.375 at epsilon 0.3."""
    probe: int = 128
    """Training samples that are attacked after each epoch, at all of epsilon; 0 watches nothing."""
    drop: float = 0.2
    """The fall of their accuracy within an epoch, as a fraction, beyond which training failed."""
    stop: bool = True
    """Whether training that failed goes back to the network before and stays there."""

    def ranges(self) -> tuple[Rule, ...]:
        """Return the rules that the fields must keep."""
        return (
            *super().ranges(),
            positive("rel_step", self.rel_step),
            positive("drop", self.drop),
            at_least("probe", self.probe, 0),
        )

    @property
    def cost(self) -> float:
        """Return the pass of the step and that of the weights."""
        return 2.5

    def refuses(self, model: nn.Module, data: "Data") -> str | None:
        """Return why there is nothing to watch, or None."""
        if data.task == "classification" or not self.probe:
            return None
        return "it watches an accuracy, which a regression has none of: set probe = 0"

    def start(self, net: Net, data: "Data", rng: torch.Generator) -> State:
        """Return the share of epsilon in force, the watched samples, and the network as it is."""
        inputs = data.train.inputs
        state = super().start(net, data, rng)
        if not self.probe:
            return state
        watched = inputs[: self.probe].clone()
        state |= {
            "probe": watched,
            "targets": data.train.targets[: self.probe].clone(),
            "offsets": unit_offsets(watched, self.norm, rng),
            "box": inputs.new_tensor(data.box or (-math.inf, math.inf)),
            "robust": inputs.new_full((), math.nan),
            "collapsed": torch.zeros((), dtype=torch.bool, device=inputs.device),
        }
        return state | self._kept(net) if self.stop else state

    def draw(self, batch: Batch, rng: torch.Generator) -> dict[str, Tensor]:
        """Return where each sample starts, in units of epsilon."""
        return {"offsets": unit_offsets(batch.inputs, self.norm, rng)}

    def loss(
        self, net: Net, batch: Batch, state: State, draw: dict[str, Tensor], h: Scalars
    ) -> tuple[Float[Tensor, ""], State]:
        """Return the mean loss at the moved points."""
        epsilon = self.due(state, h)
        points = self._moved(net, batch, draw["offsets"], epsilon, 1, h["rel_step"])
        outputs, buffers = net.train(points)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def project(self, net: Net, state: State, h: Scalars) -> tuple[Params, State]:
        """Return the parameters, or after a failure those from before it."""
        if not self._stops:
            return net.params, state
        buffers = _choose(state["collapsed"], state.get("kept_buffers", {}), state["buffers"])
        return self.effective(net, state, h), {**state, "buffers": buffers}

    def end_epoch(self, net: Net, summary: Summary, state: State, h: Scalars) -> State:
        """Return the state after a look at the watched samples."""
        if not self.probe:
            return state
        lo, hi = state["box"].tolist()
        batch = Batch(state["probe"], state["targets"], box=(lo, hi))
        points = self._moved(net, batch, state["offsets"], h["epsilon"], _PROBE_STEPS, _PROBE_STEP)
        robust = batch.correct(net(points)).mean()
        collapsed = state["collapsed"] | (state["robust"] - robust > self.drop)
        state = {**state, "robust": robust, "collapsed": collapsed}
        if self.stop and not collapsed:
            return state | self._kept(net)
        return {**state, "buffers": state["kept_buffers"]} if "kept_buffers" in state else state

    def report(self, net: Net, state: State, h: Scalars) -> dict[str, float]:
        """Return the accuracy of the watched samples, and whether training has failed."""
        if not self.probe:
            return {}
        robust, collapsed = float(state["robust"]), float(state["collapsed"])
        return {"probe_accuracy": robust, "collapsed": collapsed}

    def effective(self, net: Net, state: State, h: Scalars) -> Params:
        """Return the parameters, or after a failure those from before it."""
        if not self._stops:
            return net.params
        return _choose(state["collapsed"], state["kept"], net.params)

    @property
    def _stops(self) -> bool:
        return self.stop and self.probe > 0

    def _kept(self, net: Net) -> State:
        kept: State = {"kept": dict(net.params)}
        return kept | {"kept_buffers": dict(net.buffers)} if net.buffers else kept

    def _moved(
        self,
        net: Net,
        batch: Batch,
        offsets: Tensor,
        epsilon: Tensor,
        steps: int,
        rel_step: Tensor | float,
    ) -> Tensor:
        threat = around(batch, self.norm, epsilon)
        first = placed(batch, offsets, threat)
        return climb(net, error(batch), first, batch.inputs, threat, steps=steps, rel_step=rel_step)


def _choose(collapsed: Tensor, kept: Params, params: Params) -> Params:
    return {
        name: torch.where(collapsed, kept[name], value) if name in kept else value
        for name, value in params.items()
    }
