"""Strangers' data sets and models that do not fit: their cells fail by name, and the others run."""

import pytest
from support import runs
from support.runs import benchmark, several

from lipbench.runs.exits import ExitCode

DATASETS = '''\
"""Samples that are not what they are said to be."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lipbench.dataset import Dataset, Raw


@dataclass(frozen=True, kw_only=True)
class Strange(Dataset):
    """Six numbers of four classes, changed in one way."""

    how: str = ""
    input_shape: ClassVar[tuple[int, ...]] = (6,)
    published_outputs: ClassVar[int] = 4
    published_size: ClassVar[int] = 120
    published_test_size: ClassVar[int] = 40

    @property
    def digest(self):
        return f"strange {self.how}"

    def read(self, folder):
        rng = np.random.default_rng(0)
        x = rng.random((160, 6)).astype(np.float32)
        y = (4 * x[:, 0]).astype(np.int64).clip(0, 3)
        if self.how == "labels":
            y = y + 1
        if self.how == "bytes":
            x = (255 * x).astype(np.uint8)
        if self.how == "nan":
            x[130, 2] = np.nan
        return Raw(train_inputs=x[:120], train_targets=y[:120], test_inputs=x[120:],
                   test_targets=y[120:])


@dataclass(frozen=True, kw_only=True)
class Flat(Strange):
    """A regression whose targets have no axis of their own."""

    task: ClassVar[str] = "regression"
    published_outputs: ClassVar[int] = 1

    def read(self, folder):
        raw = super().read(folder)
        return Raw(train_inputs=raw.train_inputs,
                   train_targets=raw.train_inputs.sum(axis=1),
                   test_inputs=raw.test_inputs, test_targets=raw.test_inputs.sum(axis=1))
'''
SIZES = {"train_size": 80, "pair_size": 16, "validation_size": 16}


@pytest.fixture
def strangers(publish):
    entries = {"strange": "strange_data:Strange", "flat": "strange_data:Flat"}
    publish("unfit", {"lipbench.datasets": entries}, {"strange_data.py": DATASETS})


def test_what_does_not_fit_is_refused_before_training(strangers, tmp_path):
    says = {
        "labels": "Strange, training set: 35 labels are no classes",
        "bytes": "Strange, training set: inputs are uint8 from 0 to 25",
        "nan": "Strange, test set: 1 inputs have NaN or infinite entries, the first at index 10",
    }
    small = {"evaluation": {"bound": ["product"]}, "selection": "last"}
    parts = [
        benchmark(name=how or "good", dataset={"name": "strange", "how": how, **SIZES}, **small)
        for how in ("", *says)
    ]
    flat = benchmark(name="flat", dataset={"name": "flat", **SIZES}, **small)
    says["flat"] = "Flat, training set: targets have shape (120,), expected (120, 1)"
    folder = tmp_path / "run"
    assert runs.run(several(*parts, flat), folder) == ExitCode.FAILED
    for place in folder.glob("cells/*/*/*/status.json"):
        name = place.parts[-4]
        text = place.read_text()
        assert ('"done"' in text) == (name == "good"), text
        assert says.get(name, "") in text
        assert not (place.parent / "model.safetensors").exists() or name == "good"
