"""The selection attack: validation accuracy under it, which chooses a checkpoint."""

from collections.abc import Sequence

from lipbench.adversarial.judge import BATCH_SIZE, judge_networks
from lipbench.config.settings import Benchmark
from lipbench.data.splits import Data
from lipbench.networks.network_stack import Networks
from lipbench.seeds import stream
from lipbench.training.epoch_end import Score


def selection_score(benchmark: Benchmark, data: Data) -> Score | None:
    """Return the function that measures validation accuracy under the selection attack.

    None if the last network is taken, as always in regression.
    """
    selection, split = benchmark.selection, data.validation
    if selection == "last" or data.task == "regression":
        return None
    inputs, targets = split.inputs[: selection.size], split.targets[: selection.size]
    batch_size = benchmark.anatomy.samples_at_once(inputs.device)

    def score(networks: Networks, seeds: Sequence[int]) -> list[float]:
        results = judge_networks(
            selection.attack,
            networks,
            inputs,
            targets,
            selection.norm,
            [selection.epsilon],
            data.box,
            [stream(seed, "attack", "selection") for seed in seeds],
            batch_size=batch_size if selection.attack.samplewise else BATCH_SIZE,
        )
        return [float((~result.success).double().mean()) for (result,) in results]

    return score
