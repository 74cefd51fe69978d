"""One stack of cells whose turn it is, and where it is worked on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lipbench.planning.cell import Cell
from lipbench.runs.progress import Reporter
from lipbench.storage.cell_folder import CellFolder, Status
from lipbench.storage.rows import Read
from lipbench.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One claimed stack, and what all who work on it need."""

    siblings: Sequence[Cell]
    """All its cells."""
    wanted: frozenset[str]
    """Keys of those that are asked for."""
    run: Path
    """Folder of the run."""
    device: torch.device
    env_id: str
    report: Reporter
    read: Read
    """How files of rows are read."""

    @property
    def last(self) -> Path:
        """Return where the state of training is kept until it is done."""
        return self.siblings[0].folder(self.run).last

    @property
    def training(self) -> TrainingSettings:
        """Return the settings of the training, of which siblings share epochs and dtype."""
        return self.siblings[0].entry.training

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the data and of the parameters."""
        return getattr(torch, self.training.dtype)

    def folder(self, cell: Cell) -> CellFolder:
        """Return the folder of a cell."""
        return cell.folder(self.run)

    def status(self, cell: Cell) -> Status:
        """Read the state of a cell.

        Returns:
            Its state; a cell that has none is about to be worked on.
        """
        return self.folder(cell).read_status() or Status(state="running", pid=os.getpid())
