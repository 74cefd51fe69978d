"""The state of a stack in training on disk, from which it is resumed with the same bits."""

from pathlib import Path
from typing import Any

from lipbench.networks.trees import flatten, unflatten
from lipbench.storage.tensors import Unreadable, read_tensors, write_tensors
from lipbench.training.checkpoint_choice import Candidate
from lipbench.training.ensemble import TrainingState

_NUMBERS = ("point", "epoch", "histories", "ended", "seconds", "forwards", "gradients")


def write_training_state(path: Path, state: TrainingState, stack: tuple[str, ...]) -> None:
    """Store all that a resumed stack needs to end with the same bits."""
    tensors: dict[str, Any] = {
        name: getattr(state, name) for name in ("params", "moments", "state", "course")
    }
    tensors["streams"] = {
        role: {str(number): g.get_state() for number, g in enumerate(generators)}
        for role, generators in state.streams.items()
    }
    tensors["choices"] = {
        str(number): {str(rank): c.snapshot for rank, c in enumerate(choice.candidates)}
        for number, choice in enumerate(state.choices)
    }
    tensors["snapshots"] = {str(number): s for number, s in enumerate(state.snapshots)}
    flat = flatten(tensors)
    note = {
        "stack": stack,
        # The file sorts its tensors, and a sum over parameters depends on their order.
        "order": list(flat),
        "candidates": [
            [_but(c, "snapshot") for c in choice.candidates] for choice in state.choices
        ],
        **{name: getattr(state, name) for name in _NUMBERS},
    }
    write_tensors(path, flat, note)


def read_training_state(
    path: Path, state: TrainingState, stack: tuple[str, ...]
) -> TrainingState | None:
    """Read the stored state of this stack into `state`.

    Args:
        path: The file.
        state: That of a stack that has not begun, with the structure that files do not keep.
        stack: The keys of the cells that are trained together.

    Returns:
        The same `state`, or None if none is stored that fits; then it is left as it was.
    """
    try:
        flat, note = read_tensors(path)
    except Unreadable:
        return None
    if tuple(note["stack"]) != stack:
        return None
    flat = {name: flat[name] for name in note["order"]}
    device = next(iter(state.params.values())).device
    streams = {name: flat.pop(name) for name in [*flat] if name.startswith("streams/")}
    # A copy each: products of a tensor at an odd address may round otherwise.
    tree = unflatten({name: value.to(device, copy=True) for name, value in flat.items()})
    for name in ("params", "moments", "state", "course"):
        setattr(state, name, _filled(tree.get(name, {}), getattr(state, name)))
    for name, generator_state in streams.items():
        _, role, trial = name.split("/")
        state.streams[role][int(trial)].set_state(generator_state)
    for number, candidates in enumerate(note["candidates"]):
        stored = tree.get("choices", {}).get(str(number), {})
        state.choices[number].candidates = [
            Candidate(**numbers, snapshot=_complete(stored[str(rank)], state.state))
            for rank, numbers in enumerate(candidates)
        ]
        snapshots = tree.get("snapshots", {}).get(str(number), {})
        state.snapshots[number] = {
            name: _complete(kept, state.state) for name, kept in snapshots.items()
        }
    for name in _NUMBERS:
        setattr(state, name, note[name])
    return state


def _but(value: Any, field: str) -> dict[str, Any]:
    return {name: item for name, item in vars(value).items() if name != field}


def _complete(snapshot: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    return _filled(snapshot, {"h": {}, "state": state})


def _filled(stored: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    # Empty dictionaries have no tensor to be stored under their name.
    for name, value in whole.items():
        if isinstance(value, dict):
            _filled(stored.setdefault(name, {}), value)
    return stored
