"""Steadiness: whether a network answers after an audit as it did before it, and in one way."""

from functools import partial

import torch
from torch import Tensor, nn

from lipbench.networks.determinism import irregularity, same_answers

_SAMPLES = 8


class Steadiness:
    """The answers of a network to a few inputs before an audit, for those after it."""

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, ...], inputs: Tensor | None
    ) -> None:
        """Ask the network, which may be none that can be asked: then it is found out elsewhere.

        Args:
            model: The network, in evaluation mode.
            input_shape: Shape of one input.
            inputs: Inputs to ask it, None to draw them.
        """
        self._model, self._reason = model, None
        self._ask = partial(_inputs, model, input_shape, inputs)
        self._first = self._answers()
        if self._first is not None:
            self._reason = irregularity(model, self._ask())

    def remarks(self) -> tuple[str, ...]:
        """Return what shows that the network is no function; nothing, if nothing does."""
        if self._reason is not None:
            return (f"the network is no function of its input: {self._reason}.",)
        last = self._answers()
        if self._first is None or last is None or same_answers(self._first, last):
            return ()
        return ("the network is no function of its input: it answers otherwise after the audit.",)

    def _answers(self) -> Tensor | None:
        try:
            with torch.no_grad():
                answers = self._model(self._ask())
        except Exception:  # it may be anything
            return None
        return answers if isinstance(answers, Tensor) else None


def _inputs(model: nn.Module, input_shape: tuple[int, ...], inputs: Tensor | None) -> Tensor:
    if inputs is not None and len(inputs):
        return inputs[:_SAMPLES].detach().clone()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(_SAMPLES, *input_shape, generator=rng, dtype=torch.float64)
    return noise.to(like.device, like.dtype)
