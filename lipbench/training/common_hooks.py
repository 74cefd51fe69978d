"""Hooks that run for all trials of a stack at once, or in each step: guarded over an epoch."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lipbench.guards.generators import global_state, moved_since
from lipbench.training.ensemble import Ensemble, TrainingRefused, TrainingState

_IN_STEPS = ("draw", "loss", "ascend", "project", "effective")
_RANDOMNESS = "vmap: called random operation"
_HOME = Path(torch.__file__).parent
_CORE = Path(__file__).parents[1]


@contextmanager
def hooks_of_all(ensemble: Ensemble, what: str, state: TrainingState) -> Iterator[None]:
    """Guard the steps of an epoch, or another call that is made for a whole stack.

    The global generators are seeded from the first trial's streams. A stack has one trial if its
    method is not stackable, which may draw from them. A stackable one must not: its steps are
    recorded, with the numbers in them, and depend on which trials share a stack.

    Raises:
        TrainingRefused: If a stackable method draws from a global generator.
        Tampered: If the method changed what others compute with.
        RuntimeError: Whatever else torch raises.
    """
    method = ensemble.method
    with ensemble.trials[0].guard(what, state.point, state.epoch):
        before = global_state()
        try:
            yield
        except RuntimeError as error:
            if not method.stackable or _RANDOMNESS not in str(error):
                raise
            raise TrainingRefused(_refusal(ensemble, "torch", _place(error))) from error
        moved = moved_since(before) if method.stackable else []
        if moved and _draws_itself(ensemble):
            return  # a network that is no function, which its rows will say
    if moved:
        raise TrainingRefused(_refusal(ensemble, " and ".join(moved), _hooks(ensemble)))


def _draws_itself(ensemble: Ensemble) -> bool:
    """Return whether the forward pass of the network draws from global generators."""
    before = global_state()
    with torch.no_grad():
        ensemble.skeleton.call(*ensemble.initial[0], ensemble.data.train.inputs[:1])
    return bool(moved_since(before))


def _refusal(ensemble: Ensemble, library: str, place: str) -> str:
    name = ensemble.trials[0].entry.name
    return (
        f"{name} draws from the global generator of {library} in {place}, which runs for a whole "
        "stack: return random tensors from draw(), made with its rng, or set stackable = False."
    )


def _place(error: BaseException) -> str:
    """Return function, file and line of the plugin's code that an error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    frame = (own or list(frames))[-1]
    return f"{frame.name}() ({frame.filename}, line {frame.lineno})"


def _is_library(file: Path) -> bool:
    return file.is_relative_to(_HOME) or file.is_relative_to(_CORE)


def _hooks(ensemble: Ensemble) -> str:
    """Return the hooks of steps that the method defines, with file and line."""
    kind = type(ensemble.trials[0].method)
    own = [hook for hook in _IN_STEPS if hook in vars(kind)]
    where = [f"{hook}() ({_defined(getattr(kind, hook))})" for hook in own]
    return " or ".join(where) or "a hook of its steps"


def _defined(hook: object) -> str:
    code = inspect.unwrap(hook).__code__  # type: ignore[arg-type]
    return f"{code.co_filename}, line {code.co_firstlineno}"
