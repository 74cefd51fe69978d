"""Training timed: seconds for one network and one epoch of a short training.

What a side does once, such as to write down its steps, counts. No side measures anything meanwhile.
A run does after each epoch, above all the accuracy on the whole training set; that time is told
beside the figures.
"""

from collections.abc import Callable, Mapping
from functools import partial

from lipbench.speed import ours
from lipbench.speed.agreement import agreement
from lipbench.speed.bench import Bench
from lipbench.speed.figure import Figure, Ratio
from lipbench.speed.samples import Samples
from lipbench.speed.sides import SIDES, Training
from lipbench.speed.stopwatch import Times

_WARM_UP = 1_000
"""Samples of the epoch that every side trains before it is timed."""


def standard_stacked(bench: Bench) -> Figure:
    """Return the figure of standard training against the yardsticks."""
    return _against_yardsticks(bench, None)


def clip500_stacked(bench: Bench) -> Figure:
    """Return the figure of CLIP with many pairs and a fixed strength against the yardsticks."""
    return _against_yardsticks(bench, bench.scale.pairs)


def clip64_cost(bench: Bench) -> Figure:
    """Return the figure of CLIP with few pairs against standard training, both by this project."""
    trials, epochs, few = bench.scale.stack, bench.scale.epochs, bench.scale.few_pairs
    times = _trainings(
        bench,
        {
            "ours": lambda samples: SIDES["ours"](samples, trials=trials, epochs=epochs, pairs=few),
            "standard": lambda samples: SIDES["ours"](
                samples, trials=trials, epochs=epochs, pairs=None
            ),
        },
    )
    return Figure(
        what=f"CLIP with {few} pairs over standard training, both ours, {trials} stacked",
        ratio=Ratio.of(times.ratios("ours", "standard")),
        ours_s=times.median("ours") / (trials * epochs),
        baseline_s=("standard", times.median("standard") / (trials * epochs)),
        peak_bytes=times.peak_bytes,
        more={"stack": trials},
    )


def _against_yardsticks(bench: Bench, pairs: int | None) -> Figure:
    trials, epochs = bench.scale.stack, bench.scale.epochs

    def side(name: str) -> Callable[[Samples], Training]:
        count = trials if name == "ours" else 1
        return lambda samples: SIDES[name](samples, trials=count, epochs=epochs, pairs=pairs)

    def measured(samples: Samples) -> Callable[[], object]:
        stack = ours.trainer(samples.data, trials=trials, epochs=epochs, pairs=pairs)
        state = stack.begin()
        return lambda: stack.run(state)

    times = _trainings(bench, {**{name: side(name) for name in SIDES}, "measured": measured})
    agreed = agreement(bench, pairs)
    whole = times.median("measured") / (trials * epochs)
    return Figure(
        what=f"seconds for one network and epoch, plain over ours, {trials} stacked",
        ratio=Ratio.of(times.ratios("plain", "ours", trials)),
        ours_s=times.median("ours") / (trials * epochs),
        plain_s=times.median("plain") / epochs,
        eager_s=times.median("eager") / epochs,
        ratio_eager=Ratio.of(times.ratios("eager", "ours", trials)),
        peak_bytes=times.peak_bytes,
        more={"stack": trials, "measured_s": whole, "test_accuracy": dict(agreed.means)},
        remarks=(
            f"with what a run measures after each epoch ours takes {whole:.4g} s",
            agreed.remark,
        ),
        problems=agreed.problems,
    )


def _trainings(
    bench: Bench, sides: Mapping[str, Callable[[Samples], Callable[[], object]]]
) -> Times:
    """Return the times that each side trains for, whose networks are built before the clock."""
    size = len(bench.samples.data.train)
    # With a last batch as small as that of an epoch, so that every shape was seen.
    warm_up = bench.samples.first(min(size, _WARM_UP // 128 * 128 + size % 128))
    for side in sides.values():
        side(warm_up)()
    whole = bench.samples
    return bench.alternate({name: partial(side, whole) for name, side in sides.items()})
