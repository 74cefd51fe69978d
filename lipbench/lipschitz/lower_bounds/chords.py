"""Long chords of a polyhedron in a given direction, to be the two ends of a witness."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor

from lipbench.threat import Box

_SHARES = (0.5, 0.9, 1 - 1e-6)
"""Of a chord: its ends shall not be on a face."""
_CENTRING = 20
_LARGEST = 2**17
"""Most entries of a linear program: larger ones take seconds."""


def chords(
    faces: Float[Tensor, "faces inputs"],
    slack: Float[Tensor, " faces"],
    point: Float[Tensor, " inputs"],
    direction: Float[Tensor, " inputs"],
    domain: Box | None = None,
) -> tuple[Float[Tensor, "chords inputs"], Float[Tensor, "chords inputs"]]:
    """Return the ends of chords in a direction: through a point, near the middle, the longest.

    They are as long as numbers near the point allow, for the longer a chord, the less of a quotient
    is rounding. A linear program finds the longest; it may be off by a little, and may fail.

    Args:
        faces: Normals a of a·x < b, none of them 0.
        slack: b - a·point, which may be known better than from rounded numbers.
        point: A point inside.
        direction: The direction.
        domain: Smallest and largest entry of the ends.
    """
    lengths = torch.linalg.vector_norm(faces, dim=1)
    inside = _Inside(faces / lengths.unsqueeze(1), slack / lengths, point, domain)
    segments = [inside.chord(torch.zeros_like(point), direction)]
    segments.append(inside.chord(inside.inwards(direction), direction))
    longest = inside.longest(direction)
    if longest is not None:
        segments.append(longest)
    u, v = [], []
    for step, half in segments:
        for share in _SHARES:
            u.append(point + (step - share * half * direction))
            v.append(point + (step + share * half * direction))
    if domain is not None:
        return torch.stack(u).clamp(*domain), torch.stack(v).clamp(*domain)
    return torch.stack(u), torch.stack(v)


class _Inside:
    """A polyhedron around a point: all is told in steps from there."""

    def __init__(self, normals: Tensor, slack: Tensor, point: Tensor, domain: Box | None) -> None:
        far = 1 + float(point.abs().max())
        lo, hi = torch.full_like(point, -far), torch.full_like(point, far)
        if domain is not None:
            lo, hi = lo.maximum(domain[0] - point), hi.minimum(domain[1] - point)
        self.normals, self.slack = normals, slack.clamp_min(0)
        self.lo, self.hi = lo.clamp_max(0), hi.clamp_min(0)

    def chord(self, step: Tensor, direction: Tensor) -> tuple[Tensor, float]:
        """Return the middle of the chord through a step, and half its length.

        That is the step itself, and 0, if the direction is none.
        """
        if not direction.any():
            return step, 0.0
        speed = torch.cat([self.normals @ direction, direction, -direction])
        left = self._left(step)
        forth = torch.where(speed > 0, left / speed, torch.inf).min()
        back = torch.where(speed < 0, left / -speed, torch.inf).min()
        return step + (forth - back) / 2 * direction, float(forth + back) / 2

    def inwards(self, direction: Tensor) -> Tensor:
        """Return a step away from all faces: again and again to the middle of a chord."""
        step = torch.zeros_like(self.lo)
        for number in range(_CENTRING):
            along = direction
            if number % 2 == 0:
                # Downhill of what is infinite at every face: the logarithmic barrier.
                weights = 1 / self._left(step).clamp_min(torch.finfo(step.dtype).tiny)
                weights = weights / weights.max()
                faces, high, low = weights.split([len(self.normals), *[len(step)] * 2])
                along = -(faces @ self.normals + high - low)
            step, _ = self.chord(step, along / along.abs().max().clamp_min(1e-300))
        return step

    def longest(self, direction: Tensor) -> tuple[Tensor, float] | None:
        """Return the middle of the longest chord, and half its length; None if none is found."""
        # Unknowns are the step to the middle, and half the length. Of all steps those that the
        # faces and the chord see will do.
        basis = torch.eye(len(direction), dtype=torch.float64)
        if len(self.normals) + 1 < len(direction):
            seen = torch.cat([self.normals, direction.unsqueeze(0)])
            basis = torch.linalg.qr(seen.T)[0]
        if (len(self.normals) + 2 * len(basis)) * basis.shape[1] > _LARGEST:
            return None
        rows = torch.cat([self.normals @ basis, basis, -basis])
        speed = torch.cat([self.normals @ direction, direction, direction]).abs()
        solution = linprog(
            np.append(np.zeros(basis.shape[1]), -1.0),
            A_ub=torch.cat([rows, speed.unsqueeze(1)], dim=1).numpy(),
            b_ub=self._left(torch.zeros_like(direction)).numpy(),
            bounds=[(None, None)] * basis.shape[1] + [(0, None)],
            method="highs",
        )
        if solution.status != 0 or solution.x is None:
            return None
        return basis @ torch.from_numpy(solution.x[:-1]), float(solution.x[-1])

    def _left(self, step: Tensor) -> Tensor:
        """Return how far all faces are after a step, and those of the box."""
        faces = self.slack - self.normals @ step
        return torch.cat([faces, self.hi - step, step - self.lo]).clamp_min(0)
