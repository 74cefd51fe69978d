"""Stack sizes: how many trials of a benchmark are trained together on a device."""

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.func import grad, vmap

from lipbench.adversarial.losses import error_odds
from lipbench.config.settings import Benchmark
from lipbench.data.folder import cache
from lipbench.failure import pass_signals
from lipbench.fields import fields_json
from lipbench.guards.guard import guarded
from lipbench.networks.anatomy import Anatomy
from lipbench.networks.net import Skeleton
from lipbench.networks.precision import products
from lipbench.networks.trees import Tree, stack, take
from lipbench.storage.environment import memory, processor
from lipbench.storage.files import Damaged, StorageError, read_json, write_json

LARGEST_ON_CPU = 16
"""More share the overhead of a step no better, and fall out of the processor's cache."""
LARGEST_ON_GPU = 128
_SMALL = 2**19
"""Weights of dense layers up to which nothing is measured. On two cores, a stack of four took a
half of the time with 55,000 and 0.6 of it with 270,000; with 1.8 million it gains little."""
_SHARE_OF_MEMORY = 0.4
_MEMORY_IF_UNKNOWN = 4 * 2**30
_COPIES_OF_WEIGHTS = 12
"""Weights, gradients, momenta, and copies of networks that may still be chosen."""
_COPIES_OF_ACTIVATIONS = 6
_MEASURED_TRIALS = 4
_REPEATS = 3
_FILE = "stacking.json"


def largest_stack(
    benchmark: Benchmark, device: torch.device, run: Path | None = None, *, measure: bool = True
) -> int:
    """Decide how many trials of a benchmark one stack may hold on a device.

    As many as have room in its memory. A small network of dense layers trains faster in a stack;
    whether another one does is measured once for each model and device, and remembered in the
    user's cache.

    Args:
        benchmark: The benchmark.
        device: Where it will be trained.
        run: Folder of the run. What is decided for it is kept there, so that a run that is taken
            up again has the same stacks.
        measure: Whether to measure what is not known; else it counts as slower, for now.

    Returns:
        The number, at least 1.
    """
    if not benchmark.model.stackable:
        return 1
    sizes = benchmark.anatomy
    room = _room(benchmark, sizes, device)
    if room == 1 or (sizes.is_dense and sizes.weights <= _SMALL):
        return room
    return room if _pays(benchmark, device, run, measure) else 1


def seconds_per_trial(benchmark: Benchmark, device: torch.device) -> tuple[float, float]:
    """Measure the time of a training step for one trial: alone, and in a stack of four.

    Returns:
        Medians over repeats that alternate, on random inputs.
    """
    shape, training = benchmark.dataset.input_shape, benchmark.training
    rng = torch.Generator().manual_seed(0)
    with guarded(f"model {type(benchmark.model).__name__}", "build", 0):
        modules = [
            benchmark.model.build(shape, benchmark.dataset.outputs, rng).to(
                device, getattr(torch, training.dtype)
            )
            for _ in range(_MEASURED_TRIALS)
        ]
    skeleton = Skeleton(modules[0], shape, training.precision)
    size = (_MEASURED_TRIALS, training.batch_size)
    params = stack([{n: p.detach() for n, p in m.named_parameters()} for m in modules])
    buffers = stack([dict(m.named_buffers()) for m in modules])
    inputs = torch.rand(*size, *shape, generator=rng).to(next(iter(params.values())))
    labels = torch.zeros(size, dtype=torch.int64, device=device)

    def loss(params: Tree, buffers: Tree, inputs: Tensor, labels: Tensor) -> Tensor:
        return error_odds(skeleton.train(params, buffers, inputs)[0], labels).mean()

    step, batch = grad(loss), (params, buffers, inputs, labels)
    alone, stacked = [], []
    with products():
        for _ in range(_REPEATS + 1):
            alone.append(_clock(lambda: step(*(take(part, 0) for part in batch)), device))
            stacked.append(_clock(lambda: vmap(step)(*batch), device) / _MEASURED_TRIALS)
    # The first of each pays for what the library sets up.
    return statistics.median(alone[1:]), statistics.median(stacked[1:])


def _clock(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _pays(benchmark: Benchmark, device: torch.device, run: Path | None, measure: bool) -> bool:
    """Decide whether a stack trains faster; times that are measured for it are kept.

    Returns:
        Whether it does, as decided for the run, measured before, or measured now.
    """
    training = benchmark.training
    what = [
        benchmark.model_name,
        fields_json(benchmark.model),
        benchmark.dataset.input_shape,
        [training.batch_size, training.dtype, training.precision],
        device.type,
    ]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    machine = [name, torch.__version__, torch.get_num_threads()]
    decided, known = (None if run is None else run / _FILE), cache() / _FILE
    here, there = json.dumps(what), json.dumps([*what, machine])
    times = {} if decided is None else _remembered(decided).get(here, {})
    times = times or _remembered(known).get(there, {})
    if not times and not measure:
        return False
    if not times:
        try:
            alone, stacked = seconds_per_trial(benchmark, device)
        except BaseException as error:  # of what cannot be stacked; alone it says why
            pass_signals(error)
            alone, stacked = 0.0, math.inf
        times = {"alone": alone, "stacked": stacked}
        _remember(known, there, times)
    if measure and decided is not None:
        _remember(decided, here, times)
    return times["stacked"] < times["alone"]


def _remember(place: Path, key: str, times: dict[str, float]) -> None:
    before = _remembered(place)
    if before.get(key) != times:
        with suppress(StorageError):  # it is measured again next time
            write_json(place, {**before, key: times})


def _remembered(place: Path) -> dict[str, dict[str, float]]:
    try:
        return {
            key: {name: float(one[name]) for name in ("alone", "stacked")}
            for key, one in read_json(place).items()
        }
    except (OSError, StorageError, Damaged, TypeError, KeyError, ValueError, AttributeError):
        return {}  # what is not there, or not what was written, is measured again


def _room(benchmark: Benchmark, sizes: Anatomy, device: torch.device) -> int:
    numbers = _COPIES_OF_WEIGHTS * sizes.weights
    # A method that costs several steps sends more than its batch through the network.
    samples = benchmark.training.batch_size * max(one.method.cost for one in benchmark.methods)
    numbers += int(_COPIES_OF_ACTIVATIONS * samples * sizes.numbers_per_sample)
    width = 8 if benchmark.training.dtype == "float64" else 4
    if device.type == "cuda":
        there, largest = torch.cuda.get_device_properties(device).total_memory, LARGEST_ON_GPU
    else:
        there, largest = memory() or _MEMORY_IF_UNKNOWN, LARGEST_ON_CPU
    return max(1, min(largest, int(_SHARE_OF_MEMORY * there / (width * max(numbers, 1)))))
