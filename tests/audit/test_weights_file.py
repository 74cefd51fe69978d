"""Names under which files hold the tensors of a network."""

import pytest
import torch
from torch import nn

from lipbench.audit.weights_file import fitted


def test_what_fits_is_left_alone():
    state = nn.Linear(2, 3).state_dict()
    assert fitted(state, nn.Linear(2, 3).state_dict()) == state


def test_what_does_not_fit_keeps_its_names():
    """Messages name them as they are in the file."""
    state = {"module.weight": torch.zeros(3, 2), "module.other": torch.zeros(1)}
    assert fitted(state, nn.Linear(2, 3).state_dict()).keys() == state.keys()


def test_a_prefix_that_the_network_has_stays():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    assert fitted(state, model.state_dict()).keys() == {"0.0.weight", "0.0.bias"}


def test_a_count_of_batches_may_be_absent():
    model = nn.Sequential(nn.BatchNorm1d(2))
    state = model.state_dict()
    count = state.pop("0.num_batches_tracked")
    assert fitted(state, model.state_dict())["0.num_batches_tracked"] == count
    state.pop("0.running_var")
    assert "0.running_var" not in fitted(state, model.state_dict())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_one_name_of_a_shared_tensor_is_enough(device):
    """Tensors that hold no numbers are not the same for being nowhere."""
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(2, 2)).to(device)
    state = {name: torch.rand(value.shape) for name, value in model.state_dict().items()}
    del state["2.weight"]
    if device == "meta":
        assert "2.weight" not in fitted(state, model.state_dict())
    else:
        assert fitted(state, model.state_dict())["2.weight"] is state["0.weight"]
        del state["3.weight"]
        assert "3.weight" not in fitted(state, model.state_dict())
