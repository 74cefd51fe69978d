"""Recorded steps: a CUDA graph or a list of operations, replayed where that is faster."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from lipbench.networks.net import Meter
from lipbench.networks.trees import Tree, leaves, memory, tree_map
from lipbench.training.operation_list import Function

_PATIENCE = 12
"""Calls of one shape before it is recorded: a recording takes as long as a dozen steps or more."""
_MANY = 4 * _PATIENCE
"""Calls for which a recording pays in any case, so that it is made after the first, which warms
up."""
_WARM_UP = 3
"""Calls before a recording, in which libraries set up what they must not set up during it."""
_TRIES = 3
"""Calls that a recording has to show that it is faster."""


class CudaGraph:
    """The kernels of a function on a GPU, as a CUDA graph."""

    def __init__(self, function: Function, arguments: tuple[Tree, ...]) -> None:
        """Record one call.

        Raises:
            RuntimeError: If the function does what cannot be recorded, such as to read a value.
        """
        self._inputs = tree_map(torch.clone, arguments)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on, as those that write files.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            outputs = function(*self._inputs)
            # What the function hands through would be refilled while it is read.
            given = {memory(value) for value in leaves(self._inputs)}
            self._outputs = tree_map(lambda v: v.clone() if memory(v) in given else v, outputs)

    def __call__(self, *arguments: Tree) -> Tree:
        """Compute the outputs for other numbers; the next call overwrites them.

        Returns:
            The outputs.
        """
        refill(self._inputs, arguments)
        self._graph.replay()
        return self._outputs


def refill(targets: Tree, values: Tree) -> None:
    """Copy the tensors of a tree into those of another one."""
    torch._foreach_copy_(leaves(targets), leaves(values))


class Replayer:
    """Calls a function of trees of tensors, and then replays what it did.

    To ask for the operations of a small network takes longer than to compute them, and a recording
    asks for all at once. It is used only if it gave the same bits as the function, on the arguments
    it was made with, and took less time. What cannot be recorded is called as it is.

    The function must be pure: tensors in, tensors out, no value looked at, no random numbers.
    What a call is given may be overwritten by it, and what it returns by the next one.
    """

    def __init__(
        self,
        function: Function,
        meter: Meter,
        record: Callable[[Function, tuple[Tree, ...]], Function] | None,
        expected: Callable[..., int] | None = None,
    ) -> None:
        """Take a function.

        Args:
            function: The function.
            meter: What it counts in; a replay counts the same.
            record: How to record it; None calls it as it is.
            expected: How many calls of the same shapes there will be, by the arguments of one.
        """
        self._function, self._meter, self._record = function, meter, record
        self._expected = expected or (lambda *arguments: 0)
        self._due: dict[Any, int] = {}
        self._calls: Counter[Any] = Counter()
        self._recordings: dict[Any, tuple[Function, Meter] | None] = {}

    def __call__(self, *arguments: Tree) -> Tree:
        """Call the function or replay it, and count the call; record it once that pays.

        Returns:
            What the function returns.
        """
        if self._record is None:
            return self._function(*arguments)
        shapes = tuple((value.shape, value.dtype) for value in leaves(arguments))
        self._calls[shapes] += 1
        if self._calls[shapes] == 1:
            many = self._expected(*arguments) >= _MANY
            self._due[shapes] = min(2, _PATIENCE) if many else _PATIENCE
        if self._calls[shapes] == self._due[shapes]:
            self._recordings[shapes] = self._recorded(arguments)
        recorded = self._recordings.get(shapes)
        if recorded is None:
            return self._function(*arguments)
        recording, counts = recorded
        self._meter.forwards += counts.forwards
        self._meter.gradients += counts.gradients
        return recording(*arguments)

    def _recorded(self, arguments: tuple[Tree, ...]) -> tuple[Function, Meter] | None:
        """Return a recording and what one call counts, or None if there is no gain in it."""
        before = self._meter.forwards, self._meter.gradients
        assert self._record is not None
        try:
            expected, limit = _timed(self._function, arguments)
            forwards = self._meter.forwards - before[0]
            counts = Meter(forwards, self._meter.gradients - before[1])
            recording = self._record(self._function, arguments)
            # A recording may overwrite what it is given.
            outputs, seconds = _timed(recording, _copies(arguments))
            if not _same(outputs, expected):
                return None
            arguments, tries = _copies(arguments), 1
            while not seconds < limit:
                if tries == _TRIES:
                    return None
                seconds, tries = _timed(recording, arguments)[1], tries + 1
        except Exception:  # the function did not raise it: it ran before
            if torch.cuda.is_available():
                with suppress(RuntimeError):
                    torch.cuda.synchronize()
            return None
        finally:
            self._meter.forwards, self._meter.gradients = before
        return recording, counts


def _copies(arguments: tuple[Tree, ...]) -> tuple[Tree, ...]:
    return tuple(tree_map(torch.clone, argument) for argument in arguments)


def _same(left: Tree, right: Tree) -> bool:
    """Return whether all bits are the same, but for those of NaN."""
    return all(
        bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(leaves(left), leaves(right), strict=True)
    )


def _timed(function: Function, arguments: tuple[Tree, ...]) -> tuple[Tree, float]:
    on_gpu = any(value.is_cuda for value in leaves(arguments))
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    outputs = function(*arguments)
    if on_gpu:
        torch.cuda.synchronize()
    return outputs, time.perf_counter() - began
