"""Checkpoints of a cell, saved in its folder and loaded again."""

import copy
import csv
import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipbench.evaluation.evaluate import Trained
from lipbench.fields import key as field_key
from lipbench.networks.net import fill
from lipbench.planning.cell import Cell
from lipbench.storage.cell_folder import CellFolder, folder_name
from lipbench.storage.files import write_text
from lipbench.storage.seals import file_digest, sealed_networks
from lipbench.storage.tensors import Unreadable, read_tensors, write_tensors
from lipbench.training.trial import Outcome
from lipbench.training.untrained import prepared, untrained

Facts = dict[str, Any]
"""What status.json says of one checkpoint."""
_TIME = "training_seconds"
"""The one fact that is not the same each time a network is trained, nor in its file."""


def network_path(folder: CellFolder, checkpoint: str) -> Path:
    """Return where a checkpoint is kept; the chosen one is the model of the cell."""
    if checkpoint == "chosen":
        return folder.model
    return folder.path / f"model-{folder_name(checkpoint)}.safetensors"


def save_networks(cell: Cell, folder: CellFolder, outcome: Outcome) -> dict[str, Facts]:
    """Write each checkpoint of a trained cell.

    Returns:
        What is known of each checkpoint, by its name.
    """
    facts = {}
    for name, checkpoint in outcome.checkpoints.items():
        tensors = {**checkpoint.params, **checkpoint.buffers}
        known = {
            "epoch": checkpoint.epoch,
            "strength": _finite(checkpoint.strength),
            "train_accuracy": _finite(checkpoint.train_accuracy),
            "validation_score": _finite(checkpoint.validation_score),
            "flags": list(checkpoint.flags),
            "network_evaluations": outcome.forwards,
            "gradient_evaluations": outcome.gradients,
        }
        note = {"name": name, "train_key": cell.key, "facts": known}
        write_tensors(network_path(folder, name), tensors, note)
        facts[name] = {**known, _TIME: outcome.seconds}
    return facts


def check_network(cell: Cell, folder: CellFolder, name: str, facts: Facts) -> None:
    """Look whether the file of a checkpoint holds what training made of this very cell.

    Networks of earlier versions do not say whose they are; they are known by what was measured.

    Raises:
        Unreadable: If it is absent or damaged, or another network, or its facts are others.
    """
    path = network_path(folder, name)
    _, note = read_tensors(path)
    if note.get("name") != name or note.get("train_key", cell.key) != cell.key:
        raise Unreadable(f"{path} is damaged: it holds another network")
    if "facts" in note and note["facts"] != {k: v for k, v in facts.items() if k != _TIME}:
        raise Unreadable(f"{path} is damaged: status.json says of it what was not so")
    measured = sealed_networks(folder).get(path.name, set())
    if "train_key" not in note and measured - {file_digest(path)}:
        raise Unreadable(f"{path} is damaged: another network was measured")


def load_network(
    cell: Cell, folder: CellFolder, name: str, facts: Facts, device: torch.device
) -> Trained:
    """Return a saved checkpoint as a module, in evaluation mode.

    Raises:
        Unreadable: If its file is absent or damaged.
    """
    path = network_path(folder, name)
    digest = file_digest(path)
    tensors, _ = read_tensors(path)
    module = _rebuild(cell, device)
    fill(module, tensors)
    measured = _measured(cell, name, facts)
    # The last network may have none, and so may a chosen one if no epoch was eligible.
    bare = ("unregularised",) if cell.trial.unregularised(facts["strength"]) else ()
    flags = (*facts["flags"], *bare)
    return Trained(
        name=name, module=module, facts=measured, flags=flags, file=path.name, digest=digest
    )


def write_history(folder: CellFolder, outcome: Outcome) -> None:
    """Write train.csv, one row per epoch."""
    text = io.StringIO()
    if outcome.history:
        writer = csv.DictWriter(text, outcome.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(outcome.history)
    write_text(folder.train, text.getvalue())


def _finite(value: float | None) -> float | None:
    """Return a number, None for one that JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


def _rebuild(cell: Cell, device: torch.device) -> nn.Module:
    """Return a network of the cell's architecture, whatever its numbers, in evaluation mode."""
    dataset, seed = cell.benchmark.dataset, cell.seed
    module = untrained(cell.benchmark.model, dataset, seed)
    # A copy: whoever built it may have kept it.
    module = copy.deepcopy(prepared(cell.entry, module, dataset.input_shape, seed))
    dtype = getattr(torch, cell.entry.training.dtype)
    return module.to(device, dtype).requires_grad_(False).eval()


def _measured(cell: Cell, name: str, facts: Facts) -> dict[str, float]:
    """Return what training measured of a checkpoint, by metric."""
    metrics = {}
    law = cell.entry.method.strength
    if law is not None and facts["strength"] is not None:
        metrics[f"strength[{field_key(law.field)}]"] = facts["strength"]
    if facts["validation_score"] is not None:
        metrics["validation_score"] = facts["validation_score"]
    metrics["epoch"] = facts["epoch"]
    if name == "last":
        for metric in ("training_seconds", "network_evaluations", "gradient_evaluations"):
            metrics[metric] = facts[metric]
    return {metric: float(value) for metric, value in metrics.items()}
