"""Outcomes of attacks on the networks of a stack, several networks at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lipbench.adversarial.judge import judge_networks
from lipbench.adversarial.self_check import check_networks
from lipbench.adversary import AttackResult
from lipbench.config.settings import AttackEntry
from lipbench.data.splits import Data
from lipbench.networks.network_stack import Networks
from lipbench.planning.cell import Cell, batch_of
from lipbench.seeds import stream


@dataclass(frozen=True, kw_only=True)
class Target:
    """One checkpoint of a cell that attacks are aimed at."""

    cell: Cell
    checkpoint: str
    module: nn.Module
    """On the device and in evaluation mode."""


class AttackOutcomes:
    """The outcomes of attacks, computed when the first network of a group asks for its own.

    The groups are cut from the whole stack, whatever of it is still to be measured: a run that
    was stopped and resumed asks the same groups, and gets the same bits.
    """

    def __init__(self, targets: Sequence[Target], data: Data) -> None:
        """Take all checkpoints of a stack, which share settings and architecture."""
        self.targets, self.data = list(targets), data
        self._positions = {
            (t.cell.key, t.checkpoint): position for position, t in enumerate(targets)
        }
        self._outcomes: dict[tuple[int, int], tuple[list[AttackResult], float]] = {}
        self._spoilt: set[tuple[int, int]] = set()

    def outcome(self, cell: Cell, checkpoint: str, index: int) -> tuple[list[AttackResult], float]:
        """Hand over the outcome of an attack of the settings on a checkpoint, once.

        It is forgotten then: who asks again has it computed again.

        Returns:
            One result for each epsilon, and the seconds: an equal share of the group's. What an
            attempt on a group took that failed is in nobody's.

        Raises:
            AttackInvalid: If the attack breaks its contract.
            NonFiniteLogits: If the network answers clean inputs with infinities or NaN.
            Exception: Whatever the attack raises.
        """
        position = self._positions[cell.key, checkpoint]
        if (index, position) not in self._outcomes:
            group = self._group(cell.benchmark.evaluation.attack[index], position)
            if (index, group[0]) in self._spoilt:
                group = [position]
            try:
                self._attack(index, group)
            except Exception:
                if len(group) == 1:
                    raise
                self._spoilt.add((index, group[0]))
            if (index, position) not in self._outcomes:
                # One network may have spoilt it for all: each gets its chance alone, after the
                # exception has let go of what the others needed.
                self._attack(index, [position])
        return self._outcomes.pop((index, position))

    def _group(self, entry: AttackEntry, position: int) -> list[int]:
        together = max(1, self._batch_size(entry) // max(self._size(entry), 1))
        if not entry.attack.samplewise:
            together = 1
        first = position // together * together
        return list(range(first, min(first + together, len(self.targets))))

    def _batch_size(self, entry: AttackEntry) -> int:
        benchmark, device = self.targets[0].cell.benchmark, self.data.test.inputs.device
        fixed = batch_of(entry, benchmark.evaluation) or benchmark.evaluation.batch_size
        return fixed or benchmark.anatomy.samples_at_once(device)

    def _size(self, entry: AttackEntry) -> int:
        settings = self.targets[0].cell.benchmark.evaluation
        sizes = [entry.size, settings.test_size, len(self.data.test)]
        return min(size for size in sizes if size is not None)

    def _attack(self, index: int, group: Sequence[int]) -> None:
        began = time.perf_counter()
        targets = [self.targets[position] for position in group]
        benchmark = targets[0].cell.benchmark
        entry, box = benchmark.evaluation.attack[index], self.data.box
        size = self._size(entry)
        inputs, labels = self.data.test.inputs[:size], self.data.test.targets[:size]
        networks = Networks.of([target.module for target in targets])

        def rngs(*labels: str) -> list[torch.Generator]:
            roles = (entry.name, str(entry.norm), *labels)
            return [stream(target.cell.seed, "attack", *roles) for target in targets]

        check_networks(entry.attack, networks, inputs, labels, entry.norm, box, rngs("check"))
        outcomes = judge_networks(
            entry.attack,
            networks,
            inputs,
            labels,
            entry.norm,
            entry.epsilon,
            box,
            rngs(),
            batch_size=self._batch_size(entry),
        )
        share = (time.perf_counter() - began) / len(group)
        for position, outcome in zip(group, outcomes, strict=True):
            self._outcomes[index, position] = outcome, share
