"""Isolation of foreign attack code: the network and the global random state stay as they are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lipbench.adversarial.problem import Problem
from lipbench.adversary import Attack, AttackInvalid
from lipbench.guards.guard import Tampered
from lipbench.guards.guard import guarded as guarded_call
from lipbench.networks.modes import evaluation_mode, modules_of
from lipbench.networks.network_stack import StackClassifier


@contextmanager
def guarded(attack: Attack, problem: Problem, rng: torch.Generator) -> Iterator[None]:
    """Let an attack use a model: in evaluation mode, without gradients of its parameters.

    The global generators are seeded from `rng` inside and restored at the end, so that an attack
    that uses them is reproducible and leaves no trace. Changes of what it was given are undone.

    Raises:
        AttackInvalid: If the attack changed the network, its hooks or its modes; its cause is
            `TorchTampered` if it replaced functions of torch or numpy.
    """
    seed = int(torch.randint(2**32, (), generator=rng))
    parameters = [p for module in modules_of(problem.model)[:1] for p in module.parameters()]
    with evaluation_mode(problem.model), _without_gradients(parameters):
        try:
            with (
                guarded_call(
                    f"the attack {type(attack).__name__}",
                    "propose",
                    seed,
                    changed_by_itself=lambda: problem.model(problem.inputs[:1]),
                    **{"the network": _inside(problem)},
                ),
                torch.enable_grad(),
            ):
                yield
        except Tampered as error:
            raise AttackInvalid(str(error)) from error


def _inside(problem: Problem) -> object:
    """Return what the model is made of, but not what a stack of them remembers of its answers."""
    if isinstance(problem.model, StackClassifier):
        return problem.model.tensors() | {"code": problem.model.networks.call}
    return problem.model


@contextmanager
def _without_gradients(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, needed, gradient in before:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
