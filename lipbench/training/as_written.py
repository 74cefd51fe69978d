"""Networks as they are written: refused where training would be of another one."""

import copy

import torch
from torch import Tensor, nn

from lipbench.data.splits import Data
from lipbench.guards.generators import global_state, moved_since, private_generators
from lipbench.networks.net import Net, Skeleton

_SAMPLES = 8
_TOLERANCE = 1e-4


def misfit(module: nn.Module, data: Data) -> str | None:
    """Return why a model is not trained as it is written, or not on these data; None if it is.

    It is asked about a few training samples, in evaluation mode and in training mode, and what the
    trainer computes is compared with what torch does.

    Args:
        module: The model, as it was built, not yet prepared by a method.
        data: What it is to be trained on.
    """
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    if frozen:
        return (
            f"parameter {frozen[0]!r} is frozen (requires_grad is False), and all parameters are "
            "trained: make it a buffer, or let it be trained."
        )
    inputs = data.train.inputs[:_SAMPLES]
    return _wrong_outputs(module, inputs, data) or _acts_otherwise(module, inputs)


def _wrong_outputs(module: nn.Module, inputs: Tensor, data: Data) -> str | None:
    """Return why the outputs do not fit the targets."""
    copied = copy.deepcopy(module).to(inputs.device, inputs.dtype).eval()
    try:
        with torch.no_grad():
            outputs = copied(inputs.clone())
    except (RuntimeError, ValueError, TypeError) as error:
        return f"it does not take inputs of shape {tuple(inputs.shape[1:])}: {error}"
    if not isinstance(outputs, Tensor):
        return f"it returns {type(outputs).__name__}, expected one tensor."
    wanted, kind = data.dataset.outputs, "classes"
    if data.task != "classification":
        kind = "target dimensions"
    if outputs.shape != (len(inputs), wanted):
        hint = ""
        if outputs.shape == (len(inputs), 1) and wanted == 2:
            hint = " One logit g for two classes is written as the two logits 0 and g."
        return (
            f"for {len(inputs)} inputs it returns shape {tuple(outputs.shape)}, expected "
            f"{(len(inputs), wanted)}: there are {wanted} {kind}.{hint}"
        )
    if not bool(outputs.isfinite().all()):
        return "its outputs are NaN or infinite before any training."
    return None


def _acts_otherwise(module: nn.Module, inputs: Tensor) -> str | None:
    """Return what a network does in training that the trainer would leave out."""
    skeleton = Skeleton(module, tuple(inputs.shape[1:]))
    double = copy.deepcopy(module).to(inputs.device, torch.float64)
    params = {name: value.detach() for name, value in double.named_parameters()}
    buffers = {name: value.clone() for name, value in double.named_buffers()}
    points = inputs.double()
    with torch.no_grad(), private_generators(0):
        ours, fresh = Net(skeleton, params, buffers).train(points.clone())
        before = global_state()
        theirs = double.train()(points.clone())
        moved = moved_since(before)
    if moved:
        return (
            f"in training it draws from the generator of {' and '.join(moved)}, which would be "
            "left out: noise and dropout inside a network have no rule."
        )
    if _apart(ours, theirs):
        return (
            "in training mode it answers otherwise than it would be trained: what reads "
            "self.training has no rule, but for batch normalisation."
        )
    changed = [name for name, value in double.named_buffers() if _apart(fresh[name], value)]
    if changed:
        return f"in training it changes the buffer {changed[0]!r}, which would be left out."
    return None


def _apart(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return True
    size = 1 + float(theirs.double().abs().max()) if theirs.numel() else 1.0
    return not bool(((ours - theirs).double().abs() <= _TOLERANCE * size).all())
