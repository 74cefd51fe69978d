"""Tensors on disk: safetensors files with a digest of their content, nothing that can run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lipbench.storage.files import check_is_file, write_bytes

_FORMAT = 2
"""Format 1 had a digest of the tensors alone, and not of the note."""
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
    written = json.dumps(note)
    about = json.dumps({"format": _FORMAT, "sha256": _digest(plain, written), "note": note})
    return save(plain, metadata={_ABOUT: about})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the note of a file.

    Raises:
        Unreadable: If it is not one that `write_tensors` wrote.
    """
    try:
        check_is_file(path)
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            digest, note = about["sha256"], about["note"]
            written = "" if about["format"] == 1 else json.dumps(note)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    if not isinstance(note, dict) or digest != _digest(tensors, written):
        raise Unreadable(f"{path} is damaged: its content is not what was written")
    return tensors, note


def is_whole(path: Path) -> bool:
    """Return whether a file of tensors has the length and the header it was written with."""
    try:
        check_is_file(path)
        with safe_open(path, framework="pt") as file:
            return _ABOUT in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _digest(tensors: Mapping[str, Tensor], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
