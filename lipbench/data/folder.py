"""The data folder: where data sets lie, which of them are there, and how they are fetched."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lipbench.dataset import DataMissing, Dataset
from lipbench.registry import load, names

_GROUP = "lipbench.datasets"


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Whether a data set can be read."""

    name: str
    missing: tuple[Path, ...]
    """Files that are needed and not there."""


def folder() -> Path:
    """Return the folder of the data sets: LIPBENCH_DATA, or one in the user's cache."""
    chosen = os.environ.get("LIPBENCH_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return cache() / "data"


def cache() -> Path:
    """Return the folder of this program in the user's cache."""
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lipbench"


def presence(where: Path) -> list[Presence]:
    """Return which installed data sets lie in the folder `where`.

    A data set that cannot be set up without settings, or is broken, is left out.
    """
    presences = []
    for name in names(_GROUP):
        try:
            missing = load(_GROUP, name, Dataset)().missing(where)
        except Exception:  # a stranger's; `lipbench ls datasets` says what is wrong with it
            continue
        presences.append(Presence(name=name, missing=missing))
    return presences


def fetch(chosen: Sequence[str], where: Path, progress: Callable[[str], None]) -> list[str]:
    """Download data sets into the folder `where`, and return what could not be had.

    Args:
        chosen: Names of data sets; none means all that are installed and not broken.
        where: The folder.
        progress: Is told what happens.

    Returns:
        One message for each data set that is missing still.
    """
    failures = []
    # Every name is looked up before the first download: a misspelt one costs nothing.
    for dataset in [load(_GROUP, name, Dataset)() for name in chosen or _usable(where)]:
        try:
            dataset.fetch(where, progress)
        except DataMissing as error:
            failures.append(str(error))
    return failures


def _usable(where: Path) -> list[str]:
    return [dataset.name for dataset in presence(where)]
