import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.training import digits

from lipbench.data.splits import Batch, Split, split
from lipbench.dataset import Dataset, Raw
from lipbench.registry import load

DIGITS = load("lipbench.datasets", "digits", Dataset)
SPLITS = ["train", "pairs", "validation"]


def published(samples=60, test=10, classes=10):
    # Every input tells its own position, every target its class.
    def samples_of(count):
        numbers = np.arange(count)
        inputs = np.zeros((count, 1, 8, 8), dtype=np.float32)
        inputs[:, 0, 0, 0] = numbers
        return inputs, numbers % classes

    train, held = samples_of(samples), samples_of(test)
    return Raw(
        train_inputs=train[0], train_targets=train[1], test_inputs=held[0], test_targets=held[1]
    )


@given(
    train=st.integers(1, 40),
    pairs=st.integers(0, 30),
    validation=st.integers(0, 30),
    seed=st.integers(0, 2**32),
)
def test_training_pair_and_validation_samples_are_disjoint(train, pairs, validation, seed):
    dataset = DIGITS(train_size=train, pair_size=pairs, validation_size=validation, split_seed=seed)
    if train + pairs + validation > 60:
        with pytest.raises(ValueError, match="60 training samples, which cannot give"):
            split(dataset, published())
        return
    data = split(dataset, published())
    indices = [set(getattr(data, name).index.tolist()) for name in SPLITS]
    assert [len(index) for index in indices] == [train, pairs, validation]
    assert len(set.union(*indices)) == train + pairs + validation


@given(st.integers(0, 20), st.integers(0, 20))
def test_without_a_size_training_takes_what_is_left(pairs, validation):
    data = split(DIGITS(pair_size=pairs, validation_size=validation), published())
    assert len(data.train) == 60 - pairs - validation


def test_a_smaller_training_set_is_part_of_a_larger_one():
    """Also the other sets are the same, so that only the size differs between two benchmarks."""
    small, large = (
        split(DIGITS(train_size=size, pair_size=9, validation_size=7), published())
        for size in (20, 40)
    )
    assert set(small.train.index) < set(large.train.index)
    for name in ("pairs", "validation"):
        assert np.array_equal(getattr(small, name).index, getattr(large, name).index)


@pytest.mark.parametrize("name", SPLITS)
def test_the_stored_index_says_where_each_sample_was_published(name):
    data = split(DIGITS(pair_size=9, validation_size=7), published())
    samples = getattr(data, name)
    assert samples.inputs[:, 0, 0, 0].tolist() == samples.index.tolist()
    assert samples.targets.tolist() == (samples.index % 10).tolist()


def test_the_split_depends_on_its_own_seed():
    first, same, other = (split(DIGITS(split_seed=s), published()).train.index for s in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("classes", [(1, 7), (7, 1), (3,)])
def test_a_choice_of_classes_is_renumbered_in_its_order(classes):
    data = split(DIGITS(classes=classes, pair_size=2), published())
    for samples in (data.train, data.pairs, data.test):
        digit = samples.inputs[:, 0, 0, 0].long() % 10
        assert [classes[target] for target in samples.targets.tolist()] == digit.tolist()
    assert len(data.train) + len(data.pairs) == 6 * len(classes)
    assert len(data.test) == len(classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_have_the_chosen_precision_and_labels_are_integers(dtype):
    data = split(DIGITS(), published(), dtype=dtype)
    assert data.train.inputs.dtype == dtype
    assert data.train.targets.dtype == torch.int64


IMAGES = torch.arange(256).repeat(20).view(40, 1, 8, 16).float() / 255
ALMOST = IMAGES.clone()
ALMOST[3, 0, 7, 2] = torch.nextafter(ALMOST[3, 0, 7, 2], torch.tensor(1.0))


@pytest.mark.parametrize(
    ("inputs", "are_bytes"),
    [
        (IMAGES, True),
        (ALMOST, False),
        (IMAGES + 1, False),
        (-IMAGES, False),
        (IMAGES * torch.nan, False),
        (IMAGES.double(), False),
    ],
    ids=["images", "almost", "above", "below", "nan", "float64"],
)
def test_rows_are_the_inputs_bit_by_bit(monkeypatch, inputs, are_bytes):
    monkeypatch.setattr("lipbench.data.splits._LARGE", 1)
    samples = Split(inputs=inputs, targets=torch.zeros(40), index=np.arange(40))
    chosen = torch.randint(0, 40, (3, 7))
    assert samples.rows(chosen).equal(inputs[chosen]) or inputs.isnan().any()
    assert (samples._bytes is not None) == are_bytes


def test_rows_of_a_recorded_step_may_be_overwritten():
    samples = split(load("lipbench.datasets", "digits", Dataset)(), published()).train
    before = samples.inputs.clone()
    samples.rows(torch.tensor([[0, 1], [1, 0]])).zero_()
    assert samples.inputs.equal(before)


def test_all_base_points_are_the_pair_set_in_order():
    data = digits()
    assert torch.equal(data.base_points(None, torch.Generator()), data.pairs.inputs)


def test_some_base_points_are_distinct_members_of_the_pair_set():
    data = digits()
    drawn = data.base_points(10, torch.Generator().manual_seed(1)).flatten(1)
    pair_inputs = {tuple(row) for row in data.pairs.inputs.flatten(1).tolist()}
    assert len({tuple(row) for row in drawn.tolist()} & pair_inputs) == 10


def test_more_base_points_than_there_are_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"33 pairs .* pair_size is 32: raise pair_size"):
        digits().base_points(33, torch.Generator())


LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 3.0]])


def test_losses_are_cross_entropy_in_nats():
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 0, 1]))
    expected = [np.log1p(np.exp(-1)), np.log1p(np.e), np.log(2)]
    assert batch.losses(LOGITS).tolist() == pytest.approx(expected)
    assert float(batch.loss(LOGITS)) == pytest.approx(np.mean(expected))


def test_losses_of_a_regression_are_squared_distances():
    batch = Batch(torch.zeros(2, 1), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "regression")
    assert batch.losses(LOGITS[:2]).tolist() == [2.0, 1.0]


def test_correct_counts_hits_and_never_nan():
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [torch.nan, torch.nan]])
    batch = Batch(torch.zeros(3, 1), torch.tensor([0, 0, 0]))
    assert batch.correct(outputs).tolist() == [1.0, 0.0, 0.0]
