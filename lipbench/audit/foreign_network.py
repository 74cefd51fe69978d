"""A network of somebody else: code by its import path, weights from a file."""

import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lipbench.audit import weights_file
from lipbench.layers.normalise import Normalise
from lipbench.registry import did_you_mean


class NotLoaded(Exception):
    """There is no such network, or its weights do not fit; the message says what to do."""


def load(target: str, weights: Path | None = None) -> nn.Module:
    """Import the network that `target` names, and put it into evaluation mode.

    Args:
        target: `package.module:name` or `file.py:name`, where the name is that of a module, of
            its class, or of a function without arguments that returns it. Its code runs; the
            current folder is searched first, from now on.
        weights: Its state_dict, as safetensors or as `torch.save` wrote it, alone or among other
            things of a training script. Code that is hidden in the latter is refused. None leaves
            the network as it was made.

    Returns:
        The network.

    Raises:
        NotLoaded: If anything of that cannot be had.
    """
    source, colon, name = target.partition(":")
    if not (source and colon and name):
        raise NotLoaded(f"a network is named as package.module:make_net, got {target!r}.")
    value: Any = _imported(source)
    for attribute in name.split("."):
        if not hasattr(value, attribute):
            hint = did_you_mean(
                attribute, [candidate for candidate in dir(value) if not candidate.startswith("_")]
            )
            raise NotLoaded(f"{source} has no {name!r}{hint or '.'}")
        value = getattr(value, attribute)
    model = value if isinstance(value, nn.Module) else _made(target, value)
    if weights is not None:
        _fill(model, weights)
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise NotLoaded(f"{target} has tensors without numbers (meta): give it weights.")
    return _plain(model.eval())


def normalised(model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """Return the network behind a layer that takes pixel units to those it was trained in.

    Raises:
        NotLoaded: If the numbers are no means and deviations.
    """
    try:
        layer = Normalise(mean, std)
    except ValueError as error:
        raise NotLoaded(str(error)) from error
    return nn.Sequential(layer.to(like(model)), model).eval()


def like(model: nn.Module) -> Tensor:
    """Return a tensor of the type and on the device that inputs of the network have."""
    return next(model.parameters(), torch.empty(0)).detach()


def describe(
    model: nn.Module, target: str, weights: Path | None, input_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return where a network comes from, and how large it is, as values for JSON."""
    return {
        "code": target,
        "weights": None if weights is None else str(weights),
        "sha256": None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest(),
        "input_shape": list(input_shape),
        "parameters": sum(value.numel() for value in model.parameters()),
    }


def title(facts: Mapping[str, Any]) -> str:
    """Return what `describe` gives as a line."""
    source = f" with {facts['weights']}" if facts["weights"] else ""
    shape = "x".join(map(str, facts["input_shape"]))
    return f"{facts['code']}{source}, input {shape}, {facts['parameters']:,} parameters"


def _imported(source: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if source.endswith(".py"):
            return _from_file(Path(source))
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        raise NotLoaded(
            f"{source} cannot be imported: {error}. Give the name of an installed package, of a "
            f"module in {here}, or the path of a file that ends in .py."
        ) from error
    except Exception as error:
        raise NotLoaded(
            f"{source} raised {type(error).__name__} on import: {error} (-v shows where)."
        ) from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise NotLoaded(f"there is no file {path}.")
    # Not its own name, which may be that of a module that others import.
    name = f"audited_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as after an import, which dataclasses rely on
    spec.loader.exec_module(module)
    return module


def _made(target: str, make: Any) -> nn.Module:
    if not callable(make):
        raise NotLoaded(f"{target} is a {type(make).__name__}, no torch.nn.Module and no function.")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise NotLoaded(
            f"{target} is called without arguments, but: {error}. Write a function that gives them."
        ) from error
    except ValueError:  # a built-in that does not tell
        pass
    try:
        made = make()
    except Exception as error:
        raise NotLoaded(
            f"{target}() raised {type(error).__name__}: {error} (-v shows where)."
        ) from error
    if not isinstance(made, nn.Module):
        raise NotLoaded(f"{target}() returns a {type(made).__name__}, no torch.nn.Module.")
    return made


def _plain(model: nn.Module) -> nn.Module:
    """Replace hooks of the older kind by the weights that they make.

    Returns:
        The same network.
    """
    for layer in model.modules():
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                nn.utils.remove_weight_norm(layer, hook.name)
            elif isinstance(hook, SpectralNorm):
                nn.utils.remove_spectral_norm(layer, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(layer, hook._tensor_name)
    return model


def _fill(model: nn.Module, path: Path) -> None:
    wanted = model.state_dict()
    state = weights_file.fitted(_read(path), wanted)
    problems = [f"it lacks {name!r}" for name in wanted if name not in state]
    for name, value in state.items():
        if name not in wanted:
            problems.append(f"the network has no {name!r}{did_you_mean(name, wanted)}")
        elif value.shape != wanted[name].shape:
            shapes = f"{tuple(value.shape)} and not {tuple(wanted[name].shape)}"
            problems.append(f"{name!r} has shape {shapes}")
        elif wanted[name].is_floating_point() and not value.is_floating_point():
            problems.append(f"{name!r} holds {value.dtype}, and no real numbers")
    if problems:
        more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise NotLoaded(f"{path} does not fit the network: {'; '.join(problems[:5])}{more}.")
    # Assigned, so that weights in float64 stay what they are.
    model.load_state_dict(state, assign=True)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise NotLoaded(f"there is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise NotLoaded(f"{path} is no whole safetensors file: {error}.") from error
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NotLoaded(
            f"{path} holds more than tensors, and what it holds could run code: save "
            "model.state_dict() alone, best with safetensors.torch.save_file."
        ) from error
    except Exception as error:
        raise NotLoaded(
            f"{path} cannot be read as weights: {type(error).__name__}: {error}."
        ) from error
    state = weights_file.state_in(content)
    if state is None:
        raise NotLoaded(f"{path} holds no state_dict, or several: save model.state_dict().")
    return state


_HARMLESS: list[Any] = [
    # What training scripts put beside weights: settings and measured numbers.
    Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    *(
        (type(np.float64(0)).__reduce__(np.float64(0))[0], f"numpy.{core}.multiarray.scalar")
        for core in ("core", "_core")
    ),
]
