"""Where a run computes."""

import torch

from lipbench.places import ConfigError


def resolve(device: str) -> torch.device:
    """Return the device that `auto` means here, or the one named.

    Raises:
        ConfigError: If it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["device is 'cuda', and torch sees none: choose 'cpu' or 'auto'"])
    return torch.device(device)


def device_name(device: torch.device) -> str:
    """Return what the column `device` says."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
