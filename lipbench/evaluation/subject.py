"""The subject of an evaluation: a checkpoint to be measured, and the rows that come of it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lipbench.bound import Lipschitz
from lipbench.data.splits import Data, Split
from lipbench.evaluation.attack_outcomes import AttackOutcomes
from lipbench.method import Claim
from lipbench.networks.network import Network
from lipbench.planning.cell import Cell
from lipbench.refused import Refused
from lipbench.seeds import stream
from lipbench.storage.outcomes import outcome_name
from lipbench.storage.rows import Row


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One checkpoint of a cell, ready to be measured."""

    cell: Cell
    checkpoint: str
    module: nn.Module
    """On the device and in evaluation mode; takes pixel units."""
    network: Network | Refused
    """The same function as steps in float64, or why it cannot be read as such."""
    data: Data
    attack_outcomes: AttackOutcomes
    """What attacks do to it and to the others of its stack."""
    row: Row
    """A row with all the columns that the checkpoint fixes."""
    claim: Claim | Refused | None = None
    """The Lipschitz constant that the method guarantees, for the bounds to refute; why there is
    none, if what the method says is no claim."""
    facts: dict[str, float] = field(default_factory=dict)
    """What training measured of the checkpoint, by metric."""
    known: list[Lipschitz] = field(default_factory=list)
    """Bounds found so far, from which others may start."""

    @property
    def test(self) -> Split:
        """Return the test samples that are evaluated."""
        size = self.cell.benchmark.evaluation.test_size
        test = self.data.test
        return replace(
            test, inputs=test.inputs[:size], targets=test.targets[:size], index=test.index[:size]
        )

    def global_seed(self, *labels: str) -> int:
        """Return the seed of the global generators for a plugin that measures the checkpoint."""
        return stream(self.cell.seed, "global", *labels).initial_seed()

    @property
    def is_classifier(self) -> bool:
        """Return whether the outputs are logits."""
        return self.data.task == "classification"

    @property
    def readable(self) -> Network:
        """Return the network as steps, of a checkpoint that can be read as such."""
        assert isinstance(self.network, Network)
        return self.network


@dataclass
class Measured:
    """The rows of one evaluation of one checkpoint, and what lies behind them."""

    rows: list[Row] = field(default_factory=list)
    samples: dict[str, Tensor] = field(default_factory=dict)
    """Outcomes per sample; names begin with the checkpoint's."""
    proofs: dict[str, Tensor] = field(default_factory=dict)
    """Witnesses and certificates in float64, named likewise."""
    elsewhere: float = 0.0
    """Seconds that it cost beyond the time it took: those in which it was attacked together with
    another network that asked first. Negative for that one."""

    def add(self, row: Row, outcomes: Tensor | None = None) -> None:
        """Append a row, and per sample what its value is the mean of."""
        self.rows.append(row)
        if outcomes is not None:
            self.samples[outcome_name(row)] = outcomes.to("cpu", torch.float32)


def refused(row: Row, reason: str) -> Measured:
    """Return a row that says why the network, or the task, is not covered."""
    return without_value(row, "refused", reason)


def without_value(row: Row, status: str, reason: str) -> Measured:
    """Return a row that says why there is no value; the reason is its last flag."""
    said = flag(reason) or "no reason given"
    return Measured(rows=[replace(row, status=status, flags=(*row.flags, said))])


def flag(text: str) -> str:
    """Return a text as a flag, which may hold no semicolon and is one line."""
    return text.replace(";", ",").replace("\n", " ").encode(errors="replace").decode()
