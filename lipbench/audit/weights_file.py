"""State dictionaries of others: a file's names of weights matched with those of the network."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_USUAL = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
"""What training scripts call weights, where a file holds other tensors as well."""
_OLDER = (
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
    (".parametrizations.weight.original", ".weight_orig"),
    (".parametrizations.weight.0._u", ".weight_u"),
    (".parametrizations.weight.0._v", ".weight_v"),
)
"""Ends of names of parametrised weights, and those that torch gave the same tensors before."""


def state_in(content: Any) -> dict[str, Tensor] | None:
    """Return the state_dict that a file is or holds, None if there is none, or no telling which."""
    if _is_state(content):
        return dict(content)
    if not isinstance(content, Mapping):
        return None
    states = {name: value for name, value in content.items() if _is_state(value)}
    usual = [name for name in _USUAL if name in states]
    names = usual[:1] or list(states)
    return dict(states[names[0]]) if len(names) == 1 else None


def fitted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state under the network's names, or as it is where that does not make it fit.

    Wrappers put a prefix before all names, such as `module.`; older forms of torch's weight and
    spectral normalisation had others. A count of batches does not change the function, and one of
    several names of the same tensor is enough.

    Args:
        state: What the file holds.
        wanted: The network's own state.
    """
    rest = dict(state)
    while True:
        matched = _completed(_renamed(rest, wanted), wanted)
        if matched.keys() == wanted.keys():
            return matched
        firsts = {name.partition(".")[0] for name in rest}
        if len(firsts) != 1 or not all("." in name for name in rest):
            return _completed(_renamed(state, wanted), wanted)
        rest = {name.partition(".")[2]: value for name, value in rest.items()}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _renamed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = dict(state)
    for name in wanted.keys() - state.keys():
        for newer, older in _OLDER:
            former = name.removesuffix(newer) + older
            if name.endswith(newer) and former in renamed:
                renamed[name] = renamed.pop(former)
    return renamed


def _completed(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    completed = dict(state)
    names_by_identity = {_identity(wanted[name]): name for name in state.keys() & wanted.keys()}
    for name in wanted.keys() - state.keys():
        same = names_by_identity.get(_identity(wanted[name]))
        if re.search(r"(^|\.)num_batches_tracked$", name):
            completed[name] = wanted[name]
        elif same is not None and wanted[name].data_ptr():
            completed[name] = state[same]
    return completed


def _identity(tensor: Tensor) -> tuple[int, object, object]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
