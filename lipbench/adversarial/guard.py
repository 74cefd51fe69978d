"""Isolation of foreign attack code: the network and the global random state stay as they are."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lipbench.adversary import AttackInvalid, Classifier
from lipbench.networks.modes import evaluation_mode, modules_of
from lipbench.networks.network_stack import StackClassifier


@contextmanager
def guarded(model: Classifier, rng: torch.Generator, device: torch.device) -> Iterator[None]:
    """Let an attack use `model`: in evaluation mode, without gradients of its parameters.

    The global generators are seeded from `rng` inside and restored at the end, so that an attack
    that uses them is reproducible and leaves no trace. Changes of the model are undone.

    Raises:
        AttackInvalid: If the attack changed parameters, buffers or a module's mode.
    """
    modules = modules_of(model)
    parameters = dict(named for module in modules[:1] for named in module.named_parameters())
    buffers = dict(named for module in modules[:1] for named in module.named_buffers())
    tensors = parameters | buffers | (model.tensors() if isinstance(model, StackClassifier) else {})
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    gradients = {name: (p.requires_grad, p.grad) for name, p in parameters.items()}
    with evaluation_mode(model), _private_randomness(rng, device), torch.enable_grad():
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
            yield
            changed = [name for name in tensors if not _same(tensors[name], values[name])]
            if any(module.training for module in modules):
                changed.append("the training mode")
            if changed:
                raise AttackInvalid(f"the attack changed the network: {', '.join(changed)}.")
        finally:
            for name, parameter in parameters.items():
                parameter.requires_grad_(gradients[name][0])
                parameter.grad = gradients[name][1]
            for name, tensor in tensors.items():
                if not _same(tensor, values[name]):
                    tensor.detach().copy_(values[name])


@contextmanager
def _private_randomness(rng: torch.Generator, device: torch.device) -> Iterator[None]:
    seed = int(torch.randint(2**32, (), generator=rng))
    python, numpy = random.getstate(), np.random.get_state()
    # Every device: `torch.manual_seed`, which attacks call, seeds them all.
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else ()
    with torch.random.fork_rng(devices=devices):
        try:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.manual_seed_all(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _same(tensor: Tensor, value: Tensor) -> bool:
    return torch.equal(tensor, value) or torch.equal(tensor.nan_to_num(), value.nan_to_num())
