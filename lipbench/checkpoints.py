"""Networks and training states on disk: tensors and text, nothing that can run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lipbench.choice import Candidate
from lipbench.ensemble import Progress
from lipbench.files import write_bytes
from lipbench.trees import flatten, unflatten

_FORMAT = 1
_ABOUT = "lipbench"


class Unreadable(Exception):
    """A file of tensors is absent, damaged or foreign; the message names it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Replace `path` by the tensors, with `note` as JSON beside them."""
    write_bytes(path, packed(tensors, note))


def packed(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> bytes:
    """Return what `write_tensors` writes."""
    # A copy each: safetensors refuses tensors that share memory.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    # One entry: safetensors writes several in any order, and equal content is to be equal bytes.
    about = json.dumps({"format": _FORMAT, "sha256": _digest(plain), "note": note})
    return save(plain, metadata={_ABOUT: about})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the note of a file.

    Raises:
        Unreadable: If it is not one that `write_tensors` wrote.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest, note = about["sha256"], about["note"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    if digest != _digest(tensors):
        raise Unreadable(f"{path} is damaged: its content is not what was written")
    return tensors, note


def is_whole(path: Path) -> bool:
    """Return whether a file of tensors has the length and the header it was written with."""
    try:
        with safe_open(path, framework="pt") as file:
            return _ABOUT in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def write_progress(path: Path, progress: Progress, stack: tuple[str, ...]) -> None:
    """Store all that a resumed stack needs to end with the same bits."""
    tensors: dict[str, Any] = {
        name: getattr(progress, name) for name in ("params", "moments", "state", "course")
    }
    tensors["streams"] = {
        role: {str(number): g.get_state() for number, g in enumerate(generators)}
        for role, generators in progress.streams.items()
    }
    tensors["choices"] = {
        str(number): {str(place): c.snapshot for place, c in enumerate(choice.candidates)}
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


def read_progress(path: Path, progress: Progress, stack: tuple[str, ...]) -> Progress | None:
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
        _, role, place = name.split("/")
        progress.streams[role][int(place)].set_state(state)
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


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


_NUMBERS = ("point", "epoch", "histories", "ended", "seconds", "forwards", "gradients")


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
