"""The guard around one call of a plugin: it draws reproducibly and changes nothing of others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lipbench.guards.generators import private_generators
from lipbench.guards.handed_over import HandedOver
from lipbench.guards.process_settings import process_settings
from lipbench.guards.torch_itself import put_back_torch, remember_torch


class Tampered(Exception):
    """A plugin changed what others compute with; the message names both. It is put back."""


class TorchTampered(Tampered):
    """A plugin replaced functions of torch or numpy, of which anything may keep a copy."""


@contextmanager
def guarded(
    plugin: str,
    hook: str,
    seed: int | None = None,
    *,
    changed_by_itself: Callable[[], object] = lambda: None,
    **given: Any,
) -> Iterator[None]:
    """Let a plugin work, and put back what it changed of `given` and of the process.

    The generators of torch, numpy and Python, dtypes, devices, modes, threads, the working
    directory and the like are put back in silence, see `process_settings`. What the plugin was
    given, hooks of all modules, and the functions of torch and numpy are put back and cost it what
    it computed. What may change are `torch.Generator`s and names that a cached property adds.

    Args:
        plugin: What the message calls it, such as "bound 'product'".
        hook: What of it is called.
        seed: Of the global generators meanwhile; None leaves them as they stand.
        changed_by_itself: A call that does what the owner of `given` does by itself: what that
            changes too, such as a counter in a network's forward, is not the plugin's doing.
        given: What it must not change, by the name that the message has: tensors, arrays, modules,
            dataclasses and containers of these.

    Raises:
        Tampered: If it changed what it was given, also where it raised something else.
        TorchTampered: If it replaced functions of torch or numpy.
    """
    before = HandedOver(given)
    remember_torch()
    try:
        with process_settings(), private_generators(seed):
            yield
    finally:
        patched = put_back_torch()
        changed = before.put_back(changed_by_itself)
        if patched:
            raise TorchTampered(_sentence(plugin, hook, patched))
        if changed:
            raise Tampered(_sentence(plugin, hook, changed))


def _sentence(plugin: str, hook: str, changed: list[str]) -> str:
    return f"{plugin} changed {'; '.join(changed)} (in its {hook}()), which others compute with."
