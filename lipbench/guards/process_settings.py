"""Settings of the process that change numbers, or where they go: put back after a plugin."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEPT: list[object] = []
"""Guards of torch that undo what a plugin keeps alive: the end of one would undo it."""


@contextmanager
def process_settings() -> Iterator[None]:
    """Put back at the end what a plugin may set for the whole process.

    That is torch's default dtype and device, gradient and inference mode, autocast, number of
    threads, determinism, precision of products, backends and denormal numbers; numpy's handling of
    floating-point errors; the working directory, the environment, the path of imports, the
    handlers of signals and errors, the standard streams, and how deep calls may go. What is known
    to be cheap to read is read; filters of warnings and log levels, which change no number, are
    left alone.
    """
    before = {setting: read() for setting, (read, _) in _SETTINGS.items()}
    modes = _get_current_function_mode_stack()
    try:
        yield
    finally:
        _leave_modes(modes)
        for setting, (read, write) in _SETTINGS.items():
            if read() != before[setting]:
                write(before[setting])


def _folder() -> str | None:
    with suppress(OSError):
        return os.getcwd()
    return None


def _go_back(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def _set_environment(variables: dict[str, str]) -> None:
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


def _set_inference_mode(is_on: bool) -> None:
    _KEPT.append(torch._C._InferenceMode(is_on))


def _set_handlers(handlers: list[Any]) -> None:
    # Only the main thread may, and only handlers that Python knows can be set again.
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(_SIGNALS, handlers, strict=True):
            if handler is not None:
                signal.signal(number, handler)


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _flushes_denormals() -> bool:
    tiny = torch.full((2,), 1e-310, dtype=torch.float64)
    return not bool((tiny + tiny).any())


def _leave_modes(before: list[Any]) -> None:
    """Leave the function modes that were entered and not left, such as a default device."""
    while len(_get_current_function_mode_stack()) > len(before):
        torch._C._pop_torch_function_stack()


def _of_sys(name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    # Also where it was deleted.
    return lambda: getattr(sys, name, None), lambda value: setattr(sys, name, value)


def _flag(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    **{name: _of_sys(name) for name in ("excepthook", "stdin", "stdout", "stderr")},
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    # Before the gradient mode, which it changes.
    "inference mode": (torch.is_inference_mode_enabled, _set_inference_mode),
    "gradient mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "determinism": (
        _deterministic,
        lambda on: torch.use_deterministic_algorithms(on[0], warn_only=on[1]),
    ),
    "denormal numbers": (_flushes_denormals, torch.set_flush_denormal),
    "float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "autocast on the CPU": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
    ),
    "autocast on CUDA": (
        lambda: torch.is_autocast_enabled("cuda"),
        lambda on: torch.set_autocast_enabled("cuda", on),
    ),
    "mkldnn": (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "cudnn": (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    "cudnn determinism": _flag(torch.backends.cudnn, "deterministic"),
    "cudnn benchmark": _flag(torch.backends.cudnn, "benchmark"),
    "cudnn tf32": (torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
    "anomaly mode": (torch.is_anomaly_enabled, torch._C.set_anomaly_enabled),
    "numpy errors": (np.geterr, lambda kinds: np.seterr(**kinds)),
    "working directory": (_folder, _go_back),
    "environment": (lambda: dict(os.environ), _set_environment),
    "path of imports": (
        lambda: list(sys.path),
        lambda path: sys.path.__setitem__(slice(None), path),
    ),
    "handlers of signals": (lambda: [signal.getsignal(n) for n in _SIGNALS], _set_handlers),
}
