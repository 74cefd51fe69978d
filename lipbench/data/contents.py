"""Contents of a data set: what was read, against what its class declares."""

from collections.abc import Iterator

import numpy as np

from lipbench.dataset import DataMissing, Dataset, Raw

_BYTES = 255


class DataUnfit(DataMissing):
    """A data set is not what its class declares; the message names split, value and rule."""


def check_contents(dataset: Dataset, raw: Raw) -> None:
    """Check both published parts of a data set, before anything is trained on them.

    Raises:
        DataUnfit: If inputs or targets have another shape, type or range than declared.
    """
    parts = {
        "training": (raw.train_inputs, raw.train_targets),
        "test": (raw.test_inputs, raw.test_targets),
    }
    for name, (inputs, targets) in parts.items():
        for problem in _problems(dataset, inputs, targets):
            raise DataUnfit(f"{type(dataset).__name__}, {name} set: {problem}")


def _problems(dataset: Dataset, inputs: np.ndarray, targets: np.ndarray) -> Iterator[str]:
    """Yield what is wrong; each of the checks relies on those before it."""
    for name, array in (("inputs", inputs), ("targets", targets)):
        if not isinstance(array, np.ndarray):
            yield f"{name} are {type(array).__name__}, expected a numpy array."
    if len(inputs) != len(targets):
        yield f"there are {len(inputs)} inputs and {len(targets)} targets, expected as many."
    if not len(inputs):
        yield "there are no samples."
    yield from _of_inputs(dataset, inputs)
    yield from (_of_labels if dataset.task == "classification" else _of_values)(dataset, targets)


def _of_inputs(dataset: Dataset, inputs: np.ndarray) -> Iterator[str]:
    if inputs.shape[1:] != dataset.input_shape:
        hint = ""
        if inputs.shape[1:] == (*dataset.input_shape[1:], dataset.input_shape[0]):
            hint = " Channels come before height and width."
        yield f"an input has shape {inputs.shape[1:]}, expected {dataset.input_shape}.{hint}"
    if not np.issubdtype(inputs.dtype, np.floating):
        hint = ""
        if inputs.size and int(inputs.max()) > 1:
            hint = f" from {inputs.min()} to {inputs.max()}"
        yield (
            f"inputs are {inputs.dtype}{hint}, expected floating-point numbers in pixel units: "
            f"divide bytes by {_BYTES}."
        )
    finite = np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)
    if not finite.all():
        count, first = int((~finite).sum()), int(np.argmin(finite))
        yield f"{count} inputs have NaN or infinite entries, the first at index {first}."
    if dataset.box is None:
        return
    lo, hi = dataset.box
    least, most = float(inputs.min()), float(inputs.max())
    if least < lo or most > hi:
        hint = f" Bytes are divided by {_BYTES}." if (lo, hi) == (0, 1) and most > hi else ""
        yield (
            f"inputs reach from {least:g} to {most:g}, outside the box [{lo:g}, {hi:g}] that the "
            f"class declares.{hint}"
        )


def _of_labels(dataset: Dataset, labels: np.ndarray) -> Iterator[str]:
    if labels.ndim != 1:
        hint = " Of one-hot rows take the argmax." if labels.ndim == 2 else ""
        yield f"labels have shape {labels.shape}, expected ({len(labels)},).{hint}"
    if not np.issubdtype(labels.dtype, np.integer):
        yield f"labels are {labels.dtype}, expected whole numbers such as int64."
    classes = dataset.published_outputs
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        first = int(np.argmax(outside))
        yield (
            f"{int(outside.sum())} labels are no classes, the first at index {first}: "
            f"{labels[first]}, expected 0 to {classes - 1}."
        )


def _of_values(dataset: Dataset, targets: np.ndarray) -> Iterator[str]:
    expected = (len(targets), dataset.published_outputs)
    if targets.shape != expected:
        hint = " Take y[:, None]." if targets.shape == expected[:1] else ""
        yield f"targets have shape {targets.shape}, expected {expected}.{hint}"
    if not np.issubdtype(targets.dtype, np.floating):
        yield f"targets are {targets.dtype}, expected floating-point numbers."
    if not np.isfinite(targets).all():
        rows = np.isfinite(targets).reshape(len(targets), -1).all(axis=1)
        yield f"targets are NaN or infinite, the first at index {int(np.argmin(rows))}."
