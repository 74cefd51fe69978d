"""What a table must say in words: about single methods, and about how to read it."""

from collections.abc import Sequence
from math import inf, isfinite

from lipbench.blocks import Block, Line
from lipbench.columns import GAP, MEDIAN_RADIUS, SELECTION, Column
from lipbench.paper import CITATION

_BLIND = 1000.0


def warnings(line: Line, columns: Sequence[Column]) -> list[str]:
    """Return what a reader must know about one method: failed seeds, flags, a blind bound."""
    found = []
    if line.failed:
        states = ", ".join(f"seed {seed} ({state})" for seed, state in line.failed)
        found.append(f"{line.label}: {line.done}/{line.seeds} seeds; without a number: {states}.")
    flags: dict[str, set[int]] = {}
    for entry in line.entries:
        for row in entry.rows:
            for flag in row.flags:
                flags.setdefault(flag, set()).add(row.seed)
    found += [
        f"{line.label}: {flag} for {len(seeds)} of {line.seeds} seeds."
        for flag, seeds in flags.items()
        if flag != SELECTION
    ]
    found += [
        f"{line.label}: for {count} of {line.seeds} seeds {text.rstrip('.')}."
        for text, count in line.missing
    ]
    ratio = _gap(line, columns)
    if ratio > _BLIND:
        times = f"{ratio:.2g} times" if isfinite(ratio) else "infinitely many times"
        found.append(
            f"{line.label}: the upper Lipschitz bound is {times} the lower one: "
            "the lower bound may be blind (saturated units)."
        )
    return found


def _gap(line: Line, columns: Sequence[Column]) -> float:
    """Return the largest quotient of upper and lower Lipschitz bound over seeds."""
    bounds = {
        column.side: entry.values
        for column, entry in zip(columns, line.entries, strict=True)
        if column.metric == "lipschitz"
    }
    lower, upper = bounds.get("lower", {}), bounds.get("upper", {})
    gaps = [
        upper[seed] / lower[seed] if lower[seed] > 0 else inf
        for seed in upper
        if seed in lower and upper[seed] > 0
    ]
    return max(gaps, default=0.0)


def legend(block: Block) -> list[str]:
    """Return how the numbers of `block` are to be read."""
    entries = [entry for line in block.lines for entry in line.entries]
    metrics = {column.metric for column in block.columns}
    found = [f"Checkpoint: {block.checkpoint}. Mean ± standard deviation over seeds."]
    if any(column.percent for column in block.columns):
        found.append("Accuracies in percent; epsilon and sigma in pixel units.")
    if "robust_accuracy" in metrics:
        found.append("Accuracy under attack is an upper bound on robust accuracy.")
    if "certified_accuracy" in metrics:
        found.append("Certified accuracy is a lower bound on robust accuracy.")
    if MEDIAN_RADIUS in metrics:
        found.append("Radius: within it half of the test samples are certified; negative if not.")
    if GAP in metrics:
        found.append("Ratio: upper over lower Lipschitz bound; 1 if the constant is known.")
    if any(line.failed for line in block.lines):
        found.append("k/n: k of n seeds have finished; the others enter no mean.")
    if any(entry.best for entry in entries):
        found.append(
            "Bold: better than the second best, by a 95 % interval paired over seeds and images."
        )
    if any(entry.printed is not None for entry in entries):
        found.append(f"In brackets: {CITATION}.")
        found.append(
            "The paper states neither the input scale of its noise and attack nor the loss that "
            "its strengths weigh: compare the order of rows, not the numbers."
        )
    return found
