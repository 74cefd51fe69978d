"""LipSDP's constraint on weights, given to a general conic solver (cvxpy and Clarabel).

It takes the extra `sdp`: cvxpy and Clarabel. Like any solver it only proposes.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lipbench.lipschitz.semidefinite.dense_layers import Weights, reduced
from lipbench.lipschitz.semidefinite.inequality import Inequality


def missing() -> str | None:
    """Return a message on packages that are not installed, or None."""
    absent = [name for name in ("cvxpy", "clarabel") if find_spec(name) is None]
    names = " and ".join(absent)
    return f'not installed: {names}; pip install "lipbench[sdp]"' if absent else None


def solve(
    inequality: Inequality, targets: Weights, square: float, price: float | None = None
) -> tuple[Weights, float]:
    """Return the weights with N ≥ 0 that minimise ½ Σ‖W - V‖² + price·ρ, and ρ.

    N is written as in `inequality`, without a change of coordinates.

    Args:
        inequality: The constraint.
        targets: The V.
        square: ρ, where it is fixed.
        price: What ρ costs; None fixes it.

    Raises:
        ModuleNotFoundError: If the solver is not installed.
        RuntimeError: If the solver ends without a solution.
    """
    absent = missing()
    if absent is not None:
        raise ModuleNotFoundError(absent)
    cvxpy: Any = import_module("cvxpy")
    cores, restore = reduced(targets)
    weights = [cvxpy.Variable(tuple(core.shape)) for core in cores]
    rho: Any = square if price is None else cvxpy.Variable(nonneg=True)
    blocks = _blocks(inequality, weights, rho, cores)
    rows = range(1 + max(row for row, _ in blocks))
    zeros = {row: torch.zeros(blocks[row, row].shape[0], dtype=torch.float64) for row in rows}

    def block(row: int, column: int) -> Any:
        if (row, column) in blocks:
            return blocks[row, column]
        if (column, row) in blocks:
            return blocks[column, row].T
        return cvxpy.Constant(torch.outer(zeros[row], zeros[column]).numpy())

    matrix = cvxpy.bmat([[block(row, column) for column in rows] for row in rows])
    pairs = zip(weights, cores, strict=True)
    cost = sum(cvxpy.sum_squares(weight - core.numpy()) for weight, core in pairs) / 2
    if price is not None:
        cost = cost + price * rho
    problem = cvxpy.Problem(cvxpy.Minimize(cost), [(matrix + matrix.T) / 2 >> 0])
    problem.solve(solver=cvxpy.CLARABEL)
    if any(weight.value is None for weight in weights):
        raise RuntimeError(f"Clarabel ended with the status {problem.status!r}.")
    values = [torch.as_tensor(weight.value, dtype=torch.float64) for weight in weights]
    return restore(values), square if price is None else float(rho.value)


def _blocks(
    inequality: Inequality, weights: list[Any], rho: Any, cores: list[Tensor]
) -> dict[tuple[int, int], Any]:
    """Return the blocks of N on and below its diagonal that are not 0."""
    cvxpy: Any = import_module("cvxpy")

    def diagonal(values: Tensor) -> Any:
        return cvxpy.Constant(values.diag().numpy())

    last = len(cores)
    ones = cores[0].new_ones
    blocks = {
        (0, 0): rho * diagonal(ones(cores[0].shape[1])),
        (last, last): diagonal(ones(len(cores[-1]))),
    }
    more = last
    layers = zip(inequality.slopes, inequality.multipliers, strict=True)
    for layer, ((lo, hi), multiplier) in enumerate(layers):
        blocks[layer + 1, layer + 1] = diagonal(2 * multiplier)
        blocks[layer + 1, layer] = diagonal((lo + hi) * multiplier) @ weights[layer]
        if bool((lo < 0).any()):
            more += 1
            blocks[more, more] = diagonal(ones(len(multiplier)))
            blocks[more, layer] = diagonal((-2 * lo * hi * multiplier).sqrt()) @ weights[layer]
    blocks[last, last - 1] = weights[-1]
    return blocks
