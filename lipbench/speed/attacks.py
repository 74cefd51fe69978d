"""Attacks timed: PGD in the norm inf, by torchattacks and by this project."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from lipbench.speed import ours, plain
from lipbench.speed.bench import Bench
from lipbench.speed.figure import Figure, Ratio
from lipbench.speed.sides import SIDES
from lipbench.speed.stopwatch import TimedSide

EPSILON = 0.1
STEP_SIZE = EPSILON / 10
"""Both in pixel units."""
_WARM_UP = 100

RobustAccuracy = Callable[[Tensor, Tensor], float]
"""Returns the robust accuracy on inputs and labels."""


def pgd_linf(bench: Bench) -> Figure:
    """Return the figure of the attack on one network, trained the standard way."""
    scale, test = bench.scale, bench.samples.data.test
    bench.say("a network to attack")
    model = SIDES["ours"](bench.samples, trials=1, epochs=scale.epochs, pairs=None)()[0]
    attacks = _attacks(model, scale.attack_steps, scale.attack_batches)
    for attack in attacks.values():
        attack(test.inputs[:_WARM_UP], test.targets[:_WARM_UP])
    robust: dict[str, list[float]] = {name: [] for name in attacks}

    def side(name: str) -> TimedSide:
        attack = attacks[name]
        return lambda: lambda: robust[name].append(attack(test.inputs, test.targets))

    times = bench.alternate({name: side(name) for name in attacks})
    of_batches = [name for name in attacks if name != "ours"]
    times = times.fastest("plain", of_batches)
    # Random starts: the strongest of the yardstick's attacks against the weakest of ours.
    mine, theirs = max(robust["ours"]), min(min(robust[name]) for name in of_batches)
    remark = (
        f"accuracy under attack on {len(test)} images, epsilon {EPSILON:g} in pixel units: "
        f"ours {100 * mine:.2f} %, torchattacks {100 * theirs:.2f} %"
    )
    weaker = (f"our attack is weaker than that of torchattacks: {remark}",)
    return Figure(
        what=f"{scale.attack_steps} steps; torchattacks at its best batch over ours, two losses",
        ratio=Ratio.of(times.ratios("plain", "ours")),
        ours_s=times.median("ours"),
        plain_s=times.median("plain"),
        peak_bytes={name: times.peak_bytes[name] for name in ("ours", "plain")},
        more={
            "robust_accuracy": {"ours": mine, "plain": theirs},
            "batches_s": {name.partition(":")[2]: times.median(name) for name in of_batches},
        },
        remarks=(remark,),
        problems=() if mine <= theirs else weaker,
    )


def _attacks(model: nn.Module, steps: int, batches: tuple[int, ...]) -> dict[str, RobustAccuracy]:
    def yardstick(size: int) -> RobustAccuracy:
        return partial(
            plain.robust_accuracy,
            model,
            epsilon=EPSILON,
            step_size=STEP_SIZE,
            steps=steps,
            batch_size=size,
        )

    attack = partial(ours.robust_accuracy, model, epsilon=EPSILON, step_size=STEP_SIZE, steps=steps)
    return {"ours": attack, **{f"plain:{size}": yardstick(size) for size in batches}}
