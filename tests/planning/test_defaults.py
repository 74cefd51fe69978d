"""Every default of every setting, as it was when it was last looked at.

A field at its default is in no key. So a default that changes would let numbers that were measured
with the old one stand for the new one: raise TRAINING_PROTOCOL or EVALUATION_PROTOCOL in
lipbench/planning/cell.py. Then, or where a field is new, store the defaults by
`PYTHONPATH=tests python tests/planning/test_defaults.py`.
"""

import dataclasses
import json
from importlib.metadata import distribution
from pathlib import Path

import pytest

from lipbench import fields
from lipbench.adversarial.judge import BATCH_SIZE
from lipbench.config import settings
from lipbench.planning.cell import EVALUATION_PROTOCOL, TRAINING_PROTOCOL
from lipbench.registry import GROUPS, load
from lipbench.training.discrepancy import Discrepancy
from lipbench.training.optimiser import Optimizer
from lipbench.training.settings import MethodEntry, TrainingSettings

STORED = Path(__file__).with_name("defaults.json")
SETTINGS = [
    TrainingSettings,
    Optimizer,
    MethodEntry,
    Discrepancy,
    settings.SelectionSettings,
    settings.NoiseEntry,
    settings.AttackEntry,
    settings.BoundEntry,
    settings.CertificateEntry,
    settings.EvaluationSettings,
]


def plugins():
    """Return the built-in plugins by group and name."""
    return {
        f"{point.group}/{point.name}": load(point.group, point.name, object)
        for point in distribution("lipbench").entry_points
        if point.group in GROUPS
    }


def defaults_of(cls):
    """Return the defaults of a dataclass under its fields' keys; "-" where there is none."""
    return {fields.key(field.name): default_of(field) for field in dataclasses.fields(cls)}


def default_of(field):
    if field.default_factory is not dataclasses.MISSING:
        return fields.plain(field.default_factory())
    return "-" if field.default is dataclasses.MISSING else fields.plain(field.default)


def defaults():
    return {
        "batch_size of attacks": BATCH_SIZE,
        **{cls.__name__: defaults_of(cls) for cls in SETTINGS},
        **{name: defaults_of(cls) for name, cls in plugins().items()},
    }


def protocols():
    return {"training": TRAINING_PROTOCOL, "evaluation": EVALUATION_PROTOCOL}


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_the_defaults_belong_to_the_current_protocols(stored):
    assert stored["protocols"] == protocols(), "a protocol is new: store its defaults"


def test_no_default_has_changed(stored):
    """Nor has a field come or gone unseen; what is 1 is no longer the same as 1.0."""
    found = defaults()
    assert set(found) == set(stored["defaults"])
    for name, values in found.items():
        assert text(values) == text(stored["defaults"][name]), f"{name}: see the head of this file"


def text(value):
    return json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("cls", [settings.Benchmark, settings.Config])
def test_what_is_put_into_keys_field_by_field_has_no_other_fields(cls):
    """A new field here would be in no key: `lipbench/planning/cell.py` names them one by one."""
    known = {
        "Benchmark": "name dataset_name dataset model_name model training selection evaluation "
        "methods seeds",
        "Config": "benchmarks schema seeds device",
    }
    assert {field.name for field in dataclasses.fields(cls)} == set(known[cls.__name__].split())


if __name__ == "__main__":
    content = {"protocols": protocols(), "defaults": defaults()}
    STORED.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
