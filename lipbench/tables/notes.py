"""Footnotes and legends of a table."""

from collections.abc import Sequence
from math import inf, isfinite

from lipbench.storage.rows import SELECTION
from lipbench.tables.blocks import TableBlock, TableLine
from lipbench.tables.columns import GAP, MEDIAN_RADIUS, Column
from lipbench.tables.paper import CITATION

_BLIND = 1000.0
_SAME = 1e-6
"""Share by which a scale may differ from 1 and change no units."""


def warnings(line: TableLine, columns: Sequence[Column]) -> list[str]:
    """Return what a reader must know about one method: failed seeds, flags, a blind bound."""
    notes = []
    if line.failed:
        states = ", ".join(f"seed {seed} ({state})" for seed, state in line.failed)
        notes.append(f"{line.label}: {line.done}/{line.seeds} seeds; without a number: {states}.")
    flags: dict[str, set[int]] = {}
    for entry in line.entries:
        for row in entry.rows:
            for flag in row.flags:
                flags.setdefault(flag, set()).add(row.seed)
    notes += [
        f"{line.label}: {flag} for {len(seeds)} of {line.seeds} seeds."
        for flag, seeds in flags.items()
        if flag != SELECTION
    ]
    notes += [
        f"{line.label}: for {count} of {line.seeds} seeds {text.rstrip('.')}."
        for text, count in line.missing
    ]
    ratio = _gap(line, columns)
    if ratio > _BLIND:
        times = f"{ratio:.2g} times" if isfinite(ratio) else "infinitely many times"
        notes.append(
            f"{line.label}: the upper Lipschitz bound is {times} the lower one: "
            "the lower bound may be blind (saturated units)."
        )
    return notes


def legend(block: TableBlock) -> list[str]:
    """Return how the numbers of `block` are to be read."""
    entries = [entry for line in block.lines for entry in line.entries]
    metrics = {column.metric for column in block.columns}
    sentences = [f"Checkpoint: {block.checkpoint}. Mean ± standard deviation over seeds."]
    if any(column.percent for column in block.columns):
        sentences.append("Accuracies in percent; epsilon and sigma in pixel units.")
    sentences += _units(block)
    if "robust_accuracy" in metrics:
        sentences.append("Accuracy under attack is an upper bound on robust accuracy.")
    if "certified_accuracy" in metrics:
        sentences.append("Certified accuracy is a lower bound on robust accuracy.")
    if MEDIAN_RADIUS in metrics:
        sentences.append(
            "Radius: within it half of the test samples are certified; negative if not."
        )
    if GAP in metrics:
        sentences.append("Ratio: upper over lower Lipschitz bound; 1 if the constant is known.")
    if any(line.failed for line in block.lines):
        sentences.append("k/n: k of n seeds have finished; the others enter no mean.")
    if any(entry.best for entry in entries):
        sentences.append(
            "Bold: better than the second best, by a 95 % interval paired over seeds and images."
        )
    if any(entry.printed is not None for entry in entries):
        sentences.append(f"In brackets: {CITATION}.")
        sentences.append(
            "The paper states neither the input scale of its noise and attack nor the loss that "
            "its strengths weigh: compare the order of rows, not the numbers."
        )
    return sentences


def _gap(line: TableLine, columns: Sequence[Column]) -> float:
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


def _units(block: TableBlock) -> list[str]:
    """Return how pixel units are converted to those behind a normalisation, if there is one."""
    of_line = {
        line.label: tuple(scale for scale in scales if abs(scale - 1) > _SAME)
        for line, scales in zip(block.lines, block.input_scales, strict=False)
    }
    labels = [label for label, scales in of_line.items() if scales]
    if not labels:
        return []
    measured = [line.label for line in block.lines if any(entry.rows for entry in line.entries)]
    who = "Its networks" if set(labels) >= set(measured) else f"The networks of {', '.join(labels)}"
    scales = sorted(scale for label in labels for scale in of_line[label])
    least, most = f"{scales[0]:.4g}", f"{scales[-1]:.4g}"
    if least == most:
        how, example = f"the smallest standard deviation is s = {least}", _example(block, scales[0])
    else:
        how = (
            f"the smallest standard deviations s are {least} to {most} (input_scale in results.csv)"
        )
        example = ""
    return [
        f"{who} normalise their inputs; {how}. Behind that, an epsilon or radius is the one shown "
        f"divided by s{example}, and a Lipschitz constant is s times the one shown."
    ]


def _example(block: TableBlock, scale: float) -> str:
    for column in block.columns:
        if column.metric == "robust_accuracy" and column.epsilon and column.norm is not None:
            norm = "inf" if column.norm == inf else f"{column.norm:g}"
            return f" (l-{norm} {column.epsilon:g} is {column.epsilon / scale:.4g})"
    return ""
