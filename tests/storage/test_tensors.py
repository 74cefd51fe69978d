"""Files of tensors come back bit for bit, or are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lipbench.storage.tensors import Unreadable, is_whole, read_tensors, write_tensors

TENSORS = {
    "weight": torch.tensor([[1.5, -0.0], [torch.inf, torch.nan]]),
    "wide": torch.tensor(1 / 3, dtype=torch.float64),
    "count": torch.tensor([2**62, -1]),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def bits(tensor):
    return tensor.dtype, tensor.shape, tensor.numpy().tobytes()


def test_tensors_come_back_bit_for_bit_with_their_note(path):
    note = {"name": "chosen", "numbers": [1, 0.1, None], "nested": {"a": True}}
    write_tensors(path, TENSORS, note)
    stored, said = read_tensors(path)
    assert {name: bits(value) for name, value in stored.items()} == {
        name: bits(value) for name, value in TENSORS.items()
    }
    assert said == note


@given(st.floats())
def test_numbers_of_a_note_come_back_exactly(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("note") / "file"
    write_tensors(path, TENSORS, {"number": number})
    assert repr(read_tensors(path)[1]["number"]) == repr(number)


def test_equal_content_is_equal_bytes(path, tmp_path):
    again = tmp_path / "other"
    write_tensors(path, TENSORS, {"a": 1})
    write_tensors(again, dict(reversed(TENSORS.items())), {"a": 1})
    assert path.read_bytes() == again.read_bytes()


def test_views_of_one_memory_and_tensors_with_gradients_are_stored(path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"row": whole[0], "turned": whole.T, "leaf": torch.ones(2, requires_grad=True)}
    write_tensors(path, tensors, {})
    stored, _ = read_tensors(path)
    assert torch.equal(stored["turned"], whole.T)
    assert torch.equal(stored["row"], whole[0])


def test_a_file_is_replaced(path):
    write_tensors(path, TENSORS, {"a": 1})
    write_tensors(path, {"only": torch.ones(1)}, {"a": 2})
    stored, note = read_tensors(path)
    assert (list(stored), note) == (["only"], {"a": 2})


def test_a_missing_file_is_named(path):
    with pytest.raises(Unreadable, match=f"{path} cannot be read"):
        read_tensors(path)
    assert not is_whole(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(path, length):
    write_tensors(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Unreadable, match=r"model\.safetensors"):
        read_tensors(path)
    assert not is_whole(path)


def test_a_changed_bit_is_found(path):
    write_tensors(path, TENSORS, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="is damaged"):
        read_tensors(path)


def test_a_file_that_somebody_else_wrote_is_refused(path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1)}, path)
    with pytest.raises(Unreadable, match="cannot be read"):
        read_tensors(path)
    assert not is_whole(path)


def test_a_pickle_is_refused_and_never_run(path):
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(Unreadable):
        read_tensors(path)
