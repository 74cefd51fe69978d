import gzip
import os

import numpy as np
import pytest
import sklearn.datasets

from lipbench.data.folder import folder
from lipbench.data.splits import split
from lipbench.dataset import DataMissing, Dataset
from lipbench.registry import load, names

IMAGES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
WITH_IMAGES = pytest.mark.skipif(
    not os.environ.get("LIPBENCH_DATA"),
    reason="LIPBENCH_DATA does not name a folder with MNIST and Fashion-MNIST",
)


def a_dataset(name, **fields):
    return load("lipbench.datasets", name, Dataset)(**fields)


@pytest.mark.parametrize("name", IMAGES)
def test_the_digest_of_a_published_set_names_all_its_files(name):
    digests = a_dataset(name).digest.split("-")
    assert [len(digest) for digest in digests] == [64] * 4
    assert len(set(digests)) == 4


@pytest.mark.parametrize("name", IMAGES)
def test_a_published_set_is_read_with_its_own_loader(name):
    assert a_dataset(name).loader.__name__ == IMAGES[name]


@WITH_IMAGES
@pytest.mark.parametrize("name", IMAGES)
def test_the_published_images_are_60000_and_10000_of_28x28_pixels(name, tmp_path):
    raw = a_dataset(name).read(unpacked(IMAGES[name], tmp_path))
    assert raw.train_inputs.shape == (60_000, 1, 28, 28)
    assert raw.test_inputs.shape == (10_000, 1, 28, 28)
    assert (raw.train_inputs.min(), raw.train_inputs.max()) == (0, 1)
    assert np.bincount(raw.test_targets).sum() == 10_000
    assert raw.train_targets.min() == 0
    assert raw.train_targets.max() == 9


def unpacked(name, tmp_path):
    # The files may lie there packed, and on a folder that cannot be written to.
    source, target = folder() / name / "raw", tmp_path / name / "raw"
    target.mkdir(parents=True)
    for path in source.glob("*ubyte*"):
        plain = path.read_bytes()
        content = gzip.decompress(plain) if path.suffix == ".gz" else plain
        (target / path.name.removesuffix(".gz")).write_bytes(content)
    return tmp_path


def test_the_digits_are_1797_images_of_8x8_pixels(tmp_path):
    raw = a_dataset("digits").read(tmp_path)
    assert raw.train_inputs.shape == (1437, 1, 8, 8)
    assert raw.test_inputs.shape == (360, 1, 8, 8)
    both = np.concatenate([raw.train_inputs, raw.test_inputs])
    assert (both.min(), both.max(), both.dtype) == (0, 1, np.float32)
    assert len(np.unique(both, axis=0)) == 1797


def test_digits_that_were_changed_are_refused(tmp_path, monkeypatch):
    bunch = sklearn.datasets.load_digits()
    bunch.images[0, 0, 0] += 1
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    with pytest.raises(DataMissing, match=r"digits have SHA-256 .* reinstall scikit-learn"):
        a_dataset("digits").read(tmp_path)


def test_half_max_abs_is_the_target_function_on_its_grid(tmp_path):
    """f(x) = ½·max(|x| - 3, 0): ½ at both ends, 0 within [-3, 3], ¼ at 3.5."""
    raw = a_dataset("half_max_abs").read(tmp_path)
    x, y = raw.test_inputs[:, 0], raw.test_targets[:, 0]
    assert (len(x), x[0], x[-1], y[0], y[-1]) == (801, -4, 4, 0.5, 0.5)
    assert not y[np.abs(x) <= 3].any()
    assert y[np.argmin(np.abs(x - 3.5))] == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(3))
def test_half_max_abs_has_training_inputs_on_its_three_intervals_only(tmp_path, seed):
    raw = a_dataset("half_max_abs", samples=500, split_seed=seed).read(tmp_path)
    size = np.abs(raw.train_inputs[:, 0])
    assert (((size >= 3) & (size <= 4)) | (size <= 0.3)).all()
    # Uniform on a length of 2.6: the middle has a share of 0.6 / 2.6.
    assert (size <= 0.3).mean() == pytest.approx(0.6 / 2.6, abs=0.08)


def test_half_max_abs_has_noise_of_the_stated_size_on_training_targets(tmp_path):
    fields = {"samples": 4000}
    noisy = a_dataset("half_max_abs", noise=0.2, **fields).read(tmp_path)
    plain = a_dataset("half_max_abs", noise=0.0, **fields).read(tmp_path)
    x = plain.train_inputs.astype(np.float64)
    np.testing.assert_allclose(plain.train_targets, np.maximum(np.abs(x) - 3, 0) / 2, atol=1e-6)
    assert (noisy.train_targets - plain.train_targets).std() == pytest.approx(0.2, rel=0.05)


def test_half_max_abs_samples_pairs_on_its_whole_domain():
    dataset = a_dataset("half_max_abs")
    drawn = dataset.sample_pairs(2000, np.random.default_rng(0))
    assert drawn.shape == (2000, 1)
    assert np.abs(drawn).max() <= 4
    counts, _ = np.histogram(drawn, bins=8, range=(-4, 4))
    assert counts.min() > 180


def test_half_max_abs_keeps_its_training_set_for_every_split(tmp_path):
    dataset = a_dataset("half_max_abs")
    data = split(dataset, dataset.read(tmp_path))
    assert (len(data.train), len(data.pairs), len(data.test)) == (100, 0, 801)
    assert data.train.targets.shape == (100, 1)


@pytest.mark.parametrize(("field", "value"), [("samples", 0), ("noise", -0.1)])
def test_half_max_abs_refuses_a_number_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        a_dataset("half_max_abs", **{field: value})


def test_the_sine_has_the_points_and_the_noise_of_the_authors(tmp_path):
    """100 points i·10/99; sin(x) ≤ y < sin(x) + 1, and the noise has mean ½ and variance 1/12."""
    raw = a_dataset("sine").read(tmp_path)
    x = np.arange(100) * 10 / 99
    np.testing.assert_allclose(raw.train_inputs[:, 0], x, rtol=1e-6, atol=1e-7)
    many = a_dataset("sine", samples=4000).read(tmp_path)
    for samples in (raw, many):
        noise = samples.train_targets - np.sin(samples.train_inputs.astype(np.float64))
        assert -1e-6 <= noise.min() < 0.1
        assert 0.9 < noise.max() <= 1 + 1e-6
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.std() == pytest.approx(12**-0.5, rel=0.05)


def test_the_sine_is_tested_against_its_mean(tmp_path):
    raw = a_dataset("sine", noise=0.5).read(tmp_path)
    x = np.linspace(0, 10, 1001)
    np.testing.assert_allclose(raw.test_targets[:, 0], np.sin(x) + 0.25, atol=1e-6)


def test_the_step_is_1_at_the_points_of_the_authors(tmp_path):
    raw = a_dataset("step").read(tmp_path)
    ones = [*range(10, 15), *range(70, 80)]
    assert raw.train_targets[:, 0].nonzero()[0].tolist() == ones
    assert set(raw.train_targets[:, 0]) == {0.0, 1.0}
    fine = a_dataset("step", samples=991).read(tmp_path)  # ten points between two of theirs
    assert fine.train_targets[::10].tolist() == raw.train_targets.tolist()
    jumps = fine.train_inputs[:-1, 0][np.diff(fine.train_targets[:, 0]) != 0]
    np.testing.assert_allclose(jumps * 9.9, [9.5, 14.5, 69.5, 79.5], atol=0.11)


def test_the_step_has_noise_where_it_is_asked_for(tmp_path):
    plain, noisy = (
        a_dataset("step", samples=4000, noise=noise).read(tmp_path) for noise in (0.0, 0.2)
    )
    assert (noisy.train_targets - plain.train_targets).std() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("name", ["sine", "step"])
def test_regression_on_an_interval_samples_its_pairs_there(name, tmp_path):
    dataset = a_dataset(name)
    counts, _ = np.histogram(
        dataset.sample_pairs(2000, np.random.default_rng(0)), bins=10, range=(0, 10)
    )
    assert counts.sum() == 2000
    assert counts.min() > 140
    data = split(dataset, dataset.read(tmp_path))
    assert (len(data.train), len(data.pairs), len(data.test)) == (100, 0, 1001)
    assert data.train.targets.shape == (100, 1)
    assert dataset.grid().shape == (1001, 1)


@pytest.mark.parametrize("name", ["sine", "step"])
@pytest.mark.parametrize(("field", "value"), [("samples", 1), ("noise", -0.1)])
def test_regression_on_an_interval_refuses_a_number_out_of_range(name, field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least"):
        a_dataset(name, **{field: value})


def test_draws_of_noise_differ_between_seeds_and_data_sets(tmp_path):
    noise = [
        a_dataset(name, noise=1.0, split_seed=seed).read(tmp_path).train_targets
        for name, seed in (("sine", 0), ("sine", 0), ("sine", 1), ("step", 0))
    ]
    assert np.array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[0], noise[2])
    digests = {a_dataset(name, noise=n).digest for name in ("sine", "step") for n in (0.0, 1.0)}
    assert len(digests) == 4


def test_data_that_follow_from_fields_have_a_digest_of_the_fields():
    digests = {a_dataset("half_max_abs", samples=n).digest for n in (10, 20)}
    assert len(digests) == 2


@pytest.mark.parametrize("name", names("lipbench.datasets"))
def test_every_data_set_names_its_source_and_its_shape(name):
    dataset = a_dataset(name)
    assert "Source:" in type(dataset).__doc__
    assert dataset.outputs >= 1
    assert all(length >= 1 for length in dataset.input_shape)
    assert len(dataset.digest) > 0


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist"])
def test_a_data_set_without_a_sampler_says_so(name):
    with pytest.raises(TypeError, match="has no pair sampler: use its pair set"):
        a_dataset(name).sample_pairs(1, np.random.default_rng(0))
