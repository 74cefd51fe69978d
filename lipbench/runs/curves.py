"""Learnt curves: the functions of regression cells, as one CSV file."""

import csv
import io
from pathlib import Path

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.files import check_is_file, update_text
from lipbench.storage.results import PlannedCell, has_cells, read_plan

_COLUMNS = ("benchmark", "method", "train_key", "seed", "checkpoint", "x", "y")
"""The train key leads to the parameters in results.csv, which would fill this file."""


def write_curves(run: Path) -> Path | None:
    """Write curves.csv anew from the cells.

    Returns:
        The path of the file, None where there are no curves.
    """
    if not has_cells(run):
        return None
    rows = [row for cell in read_plan(run) for row in _curves(run, cell)]
    if not rows:
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_COLUMNS, *rows])
    path = run / "curves.csv"
    update_text(path, text.getvalue())
    return path


def _curves(run: Path, cell: PlannedCell) -> list[tuple[str | int, ...]]:
    from safetensors import SafetensorError, safe_open

    folder = CellFolder(run / cell.folder)
    status = folder.read_status()
    if status is None or status.state != "done" or not cell.evaluations:
        return []
    try:
        check_is_file(folder.samples(cell.evaluations[0]))
        with safe_open(folder.samples(cell.evaluations[0]), framework="numpy") as file:
            names = [name.removesuffix("/curve/x") for name in file.keys() if "/curve/x" in name]  # noqa: SIM118
            pairs = {
                n: (file.get_tensor(f"{n}/curve/x"), file.get_tensor(f"{n}/curve/y")) for n in names
            }
    except (OSError, SafetensorError):
        return []
    # The last point of a path is also the last and the chosen network.
    points = {name: pair for name, pair in pairs.items() if name.startswith("path:")} or pairs
    return [
        (cell.benchmark, cell.method, cell.key, cell.seed, name, str(a), str(b))
        for name, (x, y) in sorted(points.items())
        for a, b in zip(x[:, 0], y[:, 0], strict=True)
    ]
