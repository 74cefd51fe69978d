"""The state of a stack in training on disk, from which it is resumed with the same bits."""

from pathlib import Path
from typing import Any

from lipbench.networks.trees import flatten, unflatten
from lipbench.storage.tensors import Unreadable, read_tensors, write_tensors
from lipbench.training.checkpoint_choice import Candidate
from lipbench.training.ensemble import TrainingState

_NUMBERS = ("point", "epoch", "histories", "ended", "seconds", "forwards", "gradients")


def write_training_state(path: Path, progress: TrainingState, stack: tuple[str, ...]) -> None:
    """Store all that a resumed stack needs to end with the same bits."""
    tensors: dict[str, Any] = {
        name: getattr(progress, name) for name in ("params", "moments", "state", "course")
    }
    tensors["streams"] = {
        role: {str(number): g.get_state() for number, g in enumerate(generators)}
        for role, generators in progress.streams.items()
    }
    tensors["choices"] = {
        str(number): {str(rank): c.snapshot for rank, c in enumerate(choice.candidates)}
        for number, choice in enumerate(progress.choices)
    }
    tensors["snapshots"] = {str(number): s for number, s in enumerate(progress.snapshots)}
    flat = flatten(tensors)
    note = {
        "stack": stack,
        # The file sorts its tensors, and a sum over parameters depends on their order.
        "order": list(flat),
        "candidates": [
            [_but(c, "snapshot") for c in choice.candidates] for choice in progress.choices
        ],
        **{name: getattr(progress, name) for name in _NUMBERS},
    }
    write_tensors(path, flat, note)


def read_training_state(
    path: Path, progress: TrainingState, stack: tuple[str, ...]
) -> TrainingState | None:
    """Return the stored progress of this stack, or None if there is none that fits.

    Args:
        path: The file.
        progress: A stack that has not begun, for the structure that files do not keep.
        stack: The keys of the cells that are trained together.
    """
    try:
        flat, note = read_tensors(path)
    except Unreadable:
        return None
    if tuple(note["stack"]) != stack:
        return None
    flat = {name: flat[name] for name in note["order"]}
    device = next(iter(progress.params.values())).device
    streams = {name: flat.pop(name) for name in [*flat] if name.startswith("streams/")}
    # A copy each: products of a tensor at an odd address may round otherwise.
    tree = unflatten({name: value.to(device, copy=True) for name, value in flat.items()})
    for name in ("params", "moments", "state", "course"):
        setattr(progress, name, _filled(tree.get(name, {}), getattr(progress, name)))
    for name, state in streams.items():
        _, role, trial = name.split("/")
        progress.streams[role][int(trial)].set_state(state)
    for number, candidates in enumerate(note["candidates"]):
        stored = tree.get("choices", {}).get(str(number), {})
        progress.choices[number].candidates = [
            Candidate(**numbers, snapshot=_complete(stored[str(rank)], progress.state))
            for rank, numbers in enumerate(candidates)
        ]
        snapshots = tree.get("snapshots", {}).get(str(number), {})
        progress.snapshots[number] = {
            name: _complete(kept, progress.state) for name, kept in snapshots.items()
        }
    for name in _NUMBERS:
        setattr(progress, name, note[name])
    return progress


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
