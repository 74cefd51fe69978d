"""Samples and a classifier that are to be attacked, checked against each other."""

import torch
from torch import Tensor, nn

from lipbench.adversary import Classifier
from lipbench.networks.modes import evaluation_mode

_BYTES = 255


class TwoClasses(nn.Module):
    """A network of one logit g, read as the two logits 0 and g.

    It is a layer behind the network, of fixed weights, so that bounds read it too.
    """

    def __init__(self, network: Classifier, like: Tensor) -> None:
        """Take a network, and an output of it, whose type and device the layer has."""
        super().__init__()
        self.network = network
        self.logits = nn.Linear(1, 2, device=like.device, dtype=like.dtype).requires_grad_(False)
        self.logits.weight.copy_(torch.tensor([[0.0], [1.0]]))
        self.logits.bias.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return 0 and g for each sample."""
        return self.logits(self.network(inputs))


def classifier_of(model: Classifier, inputs: Tensor, labels: Tensor) -> Classifier:
    """Return a classifier that has a logit for each class, after its answers were looked at.

    Args:
        model: Maps inputs to logits; one logit g for the labels 0 and 1 is read as (0, g).
        inputs: Samples, checked by `checked_inputs`.
        labels: Their labels, checked by `checked_labels`.

    Raises:
        ValueError: If it does not take the inputs, or returns anything but finite logits for all
            classes.
    """
    if not len(inputs):
        return model
    few = inputs[:2]
    logits = _answered(model, few)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model returns {type(logits).__name__}, expected one tensor.")
    if logits.ndim != 2 or len(logits) != len(few):
        raise ValueError(
            f"the model returns shape {tuple(logits.shape)} for {len(few)} inputs, expected one "
            f"row of logits each: ({len(few)}, classes)."
        )
    if len(few) > 1:
        alone = _answered(model, few[:1])
        if not isinstance(alone, Tensor) or alone.shape != logits[:1].shape:
            shape = tuple(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
            raise ValueError(
                f"the model returns {shape} for one input, expected {tuple(logits[:1].shape)}: "
                "does it squeeze the batch away?"
            )
    classes, largest = max(2, logits.shape[1]), int(labels.max())
    if largest >= classes:
        raise ValueError(
            f"the network has {logits.shape[1]} outputs, and there is a label {largest}, "
            f"expected 0 to {classes - 1}."
        )
    if logits.shape[1] > 1:
        return model
    with torch.no_grad():
        return TwoClasses(model, logits)


def checked_inputs(inputs: Tensor) -> Tensor:
    """Return inputs that are finite floating-point numbers, one row for each sample.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs are {type(inputs).__name__}, expected a torch.Tensor.")
    if not inputs.is_floating_point():
        hint = f" from {int(inputs.min())} to {int(inputs.max())}" if inputs.numel() else ""
        raise ValueError(
            f"inputs are {inputs.dtype}{hint}, expected floating-point numbers in pixel units: "
            f"divide bytes by {_BYTES}."
        )
    if inputs.ndim < 2:
        raise ValueError(
            f"inputs have shape {tuple(inputs.shape)}, expected an axis of samples and at least "
            "one of numbers."
        )
    finite = inputs.flatten(1).isfinite().all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{int((~finite).sum())} inputs have NaN or infinite entries, the first at index "
            f"{first}."
        )
    return inputs


def checked_labels(labels: Tensor, inputs: Tensor) -> Tensor:
    """Return labels as int64, one for each input, at least 0.

    Raises:
        ValueError: If they are none.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels are {type(labels).__name__}, expected a torch.Tensor of int64.")
    if labels.shape != inputs.shape[:1]:
        hint = " Of one-hot rows take the argmax." if labels.ndim > 1 else ""
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, expected ({len(inputs)},), one for each "
            f"input.{hint}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype}, expected whole numbers such as int64.")
    if labels.device != inputs.device:
        raise ValueError(f"labels are on {labels.device} and inputs on {inputs.device}.")
    if len(labels) and int(labels.min()) < 0:
        first = int((labels < 0).nonzero()[0])
        raise ValueError(f"the label at index {first} is {int(labels[first])}, expected 0 or more.")
    return labels.to(torch.int64)


def _answered(model: Classifier, inputs: Tensor) -> object:
    with torch.no_grad(), evaluation_mode(model):
        try:
            return model(inputs.clone())
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the model does not take inputs of shape {tuple(inputs.shape[1:])} and "
                f"{inputs.dtype}: {error}"
            ) from error
