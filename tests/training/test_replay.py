"""A replayed step against the step itself. Without a GPU, a rerun stands for what that records."""

import itertools
from copy import copy
from functools import partial

import pytest
import torch
from support.recordings import always, taking
from support.training import STACKABLE, VARIANTS, a_trainer, an_entry, digits, same

from lipbench.networks.net import Meter
from lipbench.networks.trees import tree_map
from lipbench.training.replay import CudaGraph, Replayer, refill

SIZES = (4, 4, 2, 4, 4)  # the third as the last batch of an epoch


class Rerun:
    """What a graph does, by calling the function again: the same memory in, the same out."""

    def __init__(self, meter, function, arguments):
        self.meter, self.function = meter, function
        self.inputs = tree_map(torch.clone, arguments)
        self.outputs = tree_map(torch.clone, function(*self.inputs))

    def __call__(self, *arguments):
        refill(self.inputs, arguments)
        before = copy(self.meter)
        refill(self.outputs, self.function(*self.inputs))
        self.meter.__dict__ |= before.__dict__  # a graph runs no Python, and counts nothing
        return self.outputs


def running(meter):
    def function(state, inputs):
        meter.forwards += len(inputs)
        total = state["total"] + inputs.sum()
        return {"total": total, "kept": state["kept"]}, total * 2

    return function


def results(record, expected=None):
    meter = Meter()
    replayer = Replayer(running(meter), meter, record and partial(record, meter), expected)
    state, seen = {"total": torch.zeros(()), "kept": torch.ones(3)}, []
    for size in SIZES:
        state, doubled = replayer(state, torch.full((size,), 0.5))
        seen.append(float(doubled))
    return seen, float(state["total"]), meter


def test_replays_go_on_from_what_they_returned_and_count_the_same(monkeypatch):
    always(monkeypatch)
    assert results(Rerun) == results(None)
    assert results(Rerun)[2] == Meter(forwards=sum(SIZES))


class Wrong(Rerun):
    def __call__(self, *arguments):
        return tree_map(lambda value: value + 1, super().__call__(*arguments))


class Never(Rerun):
    def __init__(self, meter, function, arguments):
        raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("record", [Wrong, Never])
def test_what_cannot_be_replayed_is_called(record, monkeypatch):
    always(monkeypatch)
    assert results(record) == results(None)


@pytest.mark.parametrize(
    ("seconds", "calls_each", "is_used"),
    [([1, 1, 1, 1], 3, False), ([1, 2, 2, 0.5], 3, True), ([1, 0.5], 1, True)],
)
def test_what_is_no_faster_is_called(seconds, calls_each, is_used, monkeypatch):
    """The function's seconds first; a recording that is not faster may try three times."""
    calls = []

    class Slow(Rerun):
        def __call__(self, *arguments):
            calls.append(1)
            return super().__call__(*arguments)

    monkeypatch.setattr("lipbench.training.replay._PATIENCE", 1)
    taking(monkeypatch, itertools.cycle(seconds))
    assert results(Slow) == results(None)
    # Compared once for each shape.
    uses = len(SIZES) if is_used else 0
    assert len(calls) == calls_each * len(set(SIZES)) + uses


def test_a_shape_is_recorded_once_it_was_met_often(monkeypatch):
    always(monkeypatch)
    monkeypatch.setattr("lipbench.training.replay._PATIENCE", 3)
    met = []

    class Noted(Rerun):
        def __init__(self, meter, function, arguments):
            met.append(len(arguments[1]))
            super().__init__(meter, function, arguments)

    assert results(Noted) == results(None)
    assert met == [4]  # which come four times, and two samples once


def test_what_will_come_often_is_recorded_at_its_second_call(monkeypatch):
    always(monkeypatch)
    monkeypatch.setattr("lipbench.training.replay._PATIENCE", 3)
    totals = []

    class Noted(Rerun):
        def __init__(self, meter, function, arguments):
            totals.append((len(arguments[1]), float(arguments[0]["total"])))
            super().__init__(meter, function, arguments)

    for many, expected in ((48, [(4, 2.0)]), (47, [(4, 5.0)])):
        totals.clear()
        assert results(Noted, lambda state, inputs, n=many: n * (len(inputs) == 4)) == results(None)
        assert totals == expected


@pytest.mark.parametrize(("batch_size", "expected"), [(50, 5 * 2), (40, 5 * 2), (100, 5)])
def test_a_training_knows_how_often_a_step_comes(batch_size, expected):
    entry = an_entry("standard", epochs=5, batch_size=batch_size)
    trainer = a_trainer(entry, digits(train=100), records=True)
    seen = {}
    step = trainer.step._expected
    trainer.step._expected = lambda *arguments: seen.setdefault(
        arguments[7].shape[1], step(*arguments)
    )
    trainer.run(trainer.begin())
    assert seen == {batch_size: expected} | ({20: 5} if batch_size == 40 else {})


# One of each kind of hook; the others are recorded in the slow tests.
USUAL = ("standard", "clip", "free", "path", "driven norm", "bjorck", "lcc", "free_at", "sandwich")


def the_entry(variant):
    return an_entry(**VARIANTS[variant])


@pytest.mark.parametrize(
    ("variant", "recording"),
    [
        ("clip", "rerun"),
        ("path", "rerun"),
        *(
            pytest.param(name, "traced", marks=[] if name in USUAL else pytest.mark.slow)
            for name in STACKABLE
        ),
    ],
)
def test_a_trainer_that_replays_ends_with_the_same_bits(variant, recording, monkeypatch):
    always(monkeypatch)
    trained = []
    for replays in (False, True):
        trainer = a_trainer(the_entry(variant), digits(train=72), seeds=(0, 1), records=True)
        if not replays:
            trainer.step._record = None
        elif recording == "rerun":
            trainer.step._record = partial(Rerun, trainer.ensemble.meter)
        trained.append(trainer.run(trainer.begin()))
        recordings = trainer.step._recordings.values()
        assert all(one is not None for one in recordings)
        assert len(recordings) == 2 * replays  # the last batch is smaller
    for plain, replayed in zip(*trained, strict=True):
        assert same(plain.checkpoints["last"].params, replayed.checkpoints["last"].params)
        assert plain.history == replayed.history
        assert (plain.forwards, plain.gradients) == (replayed.forwards, replayed.gradients)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("variant", STACKABLE)
def test_a_gpu_replays_the_step(variant, monkeypatch):
    data = digits(train=72, device="cuda")
    trained = []
    monkeypatch.setattr("lipbench.training.replay._PATIENCE", 1)
    for record in (None, CudaGraph):
        trainer = a_trainer(the_entry(variant), data, seeds=(0, 1))
        trainer.step._record = record
        trained.append(trainer.run(trainer.begin()))
    for plain, replayed in zip(*trained, strict=True):
        assert same(plain.checkpoints["last"].params, replayed.checkpoints["last"].params)
