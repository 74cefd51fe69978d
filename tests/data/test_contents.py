"""Data sets whose content is not what their class declares."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from lipbench.data.contents import DataUnfit, check_contents
from lipbench.dataset import Dataset, Raw

INPUTS = np.linspace(0, 1, 4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3)
LABELS = np.array([0, 1, 2, 1])


@dataclass(frozen=True, kw_only=True)
class Images(Dataset):
    """Four pictures of three classes."""

    input_shape: ClassVar[tuple[int, ...]] = (2, 3, 3)
    published_outputs: ClassVar[int] = 3
    digest = "none"

    def read(self, folder):
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Curve(Images):
    """A regression on the same inputs."""

    task: ClassVar = "regression"
    published_outputs: ClassVar[int] = 1


def check(dataset, inputs=INPUTS, targets=LABELS):
    """Return what is said of the same as training and as test set, beside a good one."""
    good = LABELS if dataset.task == "classification" else np.zeros((4, 1), np.float32)
    parts = [(inputs, targets), (INPUTS, good)]
    messages = []
    for first, second in (parts, parts[::-1]):
        raw = Raw(
            train_inputs=first[0],
            train_targets=first[1],
            test_inputs=second[0],
            test_targets=second[1],
        )
        with pytest.raises(DataUnfit) as caught:
            check_contents(dataset, raw)
        messages.append(str(caught.value))
    assert "training set" in messages[0]
    assert "test set" in messages[1]
    return messages[0]


def test_what_is_as_declared_is_taken():
    raw = Raw(train_inputs=INPUTS, train_targets=LABELS, test_inputs=INPUTS, test_targets=LABELS)
    check_contents(Images(), raw)


def changed(index, number):
    inputs = INPUTS.copy()
    inputs[index, 0, 0, 0] = number
    return inputs


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ((INPUTS * 255).astype(np.uint8), "uint8 from 0 to 255, expected floating-point numbers"),
        ((INPUTS > 0.5), "inputs are bool"),
        (
            INPUTS * 255,
            "reach from 0 to 255, outside the box [0, 1] that the class declares",
        ),
        (INPUTS - 0.5, "reach from -0.5 to 0.5, outside the box"),
        (changed(2, np.nan), "1 inputs have NaN or infinite entries, the first at index 2"),
        (changed(3, -np.inf), "the first at index 3"),
        (INPUTS.transpose(0, 2, 3, 1), "shape (3, 3, 2), expected (2, 3, 3). Channels come before"),
        (INPUTS.reshape(4, 18), "an input has shape (18,), expected (2, 3, 3)."),
        (INPUTS[:3], "there are 3 inputs and 4 targets"),
        (INPUTS.tolist(), "inputs are list, expected a numpy array"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, says):
    assert says in check(Images(), inputs=inputs)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            np.array([0, 1, 3, 1]),
            "1 labels are no classes, the first at index 2: 3, expected 0",
        ),
        (np.array([0, -1, 2, -1]), "2 labels are no classes, the first at index 1: -1"),
        (LABELS[:, None], "labels have shape (4, 1), expected (4,)."),
        (np.eye(3)[LABELS], "labels have shape (4, 3), expected (4,). Of one-hot rows take the"),
        (LABELS.astype(np.float32), "labels are float32, expected whole numbers"),
        (LABELS[:2], "there are 4 inputs and 2 targets"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, says):
    assert says in check(Images(), targets=labels)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (np.zeros(4, np.float32), "targets have shape (4,), expected (4, 1). Take y[:, None]."),
        (np.zeros((4, 2), np.float32), "targets have shape (4, 2), expected (4, 1)."),
        (np.zeros((4, 1), np.int64), "targets are int64, expected floating-point numbers."),
        (np.array([[0.0], [1.0], [np.nan], [2.0]]), "NaN or infinite, the first at index 2."),
    ],
)
def test_values_that_do_not_fit_are_named(targets, says):
    assert says in check(Curve(), targets=targets)


def test_a_set_without_samples_is_named():
    assert "there are no samples" in check(Images(), INPUTS[:0], LABELS[:0])
