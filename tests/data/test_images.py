"""Images in MNIST's file format: read, checked, and not fetched twice."""

import hashlib
import struct

import numpy as np
import pytest

from lipbench.data import images
from lipbench.dataset import DataMissing, Dataset
from lipbench.registry import load

IMAGES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def a_dataset(name):
    return load("lipbench.datasets", name, Dataset)()


def write_images(folder, name, train=20, test=5):
    # Files in MNIST's format; the digests that belong to them.
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    digests = {}
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = (np.arange(count * 28 * 28) % 256).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        contents = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 2051, count, 28, 28)
            + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 2049, count) + labels.tobytes(),
        }
        for file, content in contents.items():
            (raw / file).write_bytes(content)
            digests[file] = hashlib.sha256(content).hexdigest()
    return raw, digests


def read(folder, name, digests):
    from torchvision.datasets import MNIST

    return images.read(MNIST, name, folder, digests)


def test_images_are_read_in_pixel_units(tmp_path):
    _, digests = write_images(tmp_path, "MNIST")
    raw = read(tmp_path, "MNIST", digests)
    assert raw.train_inputs.shape == (20, 1, 28, 28)
    assert raw.test_inputs.shape == (5, 1, 28, 28)
    assert raw.train_inputs.dtype == np.float32
    expected = (np.arange(28 * 28) % 256).reshape(28, 28).astype(np.float32) / np.float32(255)
    assert np.array_equal(raw.train_inputs[0, 0], expected)
    assert raw.train_targets.tolist() == [number % 10 for number in range(20)]
    assert raw.train_targets.dtype == np.int64


@pytest.mark.parametrize("damage", ["flip", "cut"])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_file_is_refused_by_name(tmp_path, file, damage):
    raw, digests = write_images(tmp_path, "MNIST")
    content = bytearray((raw / file).read_bytes())
    content[-1] ^= 1
    (raw / file).write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(DataMissing, match=f"{file} has SHA-256 .*remove it"):
        read(tmp_path, "MNIST", digests)


@pytest.mark.parametrize("name", IMAGES)
def test_files_of_another_data_set_are_refused(tmp_path, name):
    raw, _ = write_images(tmp_path, IMAGES[name])
    with pytest.raises(DataMissing, match=f"{raw}/train-images-idx3-ubyte has SHA-256"):
        a_dataset(name).read(tmp_path)


@pytest.mark.parametrize("name", IMAGES)
def test_a_missing_file_is_named_with_the_way_out(tmp_path, name):
    raw, _ = write_images(tmp_path, IMAGES[name])
    (raw / "t10k-labels-idx1-ubyte").unlink()
    assert a_dataset(name).missing(tmp_path) == (raw / "t10k-labels-idx1-ubyte",)
    with pytest.raises(DataMissing, match=r"t10k-labels-idx1-ubyte is missing.*LIPBENCH_DATA"):
        a_dataset(name).read(tmp_path)


def test_what_is_there_is_not_fetched(tmp_path):
    _, digests = write_images(tmp_path, "MNIST")
    said = []
    images.fetch(pytest.fail, "MNIST", tmp_path, digests, said.append)
    assert said == [f"MNIST is in {tmp_path / 'MNIST' / 'raw'}"]


def test_what_is_there_and_damaged_is_not_called_there(tmp_path):
    write_images(tmp_path, "MNIST")
    with pytest.raises(DataMissing, match=r"has SHA-256 .* remove it and run"):
        a_dataset("mnist").fetch(tmp_path, print)
