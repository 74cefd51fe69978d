"""Time several sides in turn, so that a machine that slows down slows all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

TimedSide = Callable[[], Callable[[], object]]
"""Prepares what is timed, and returns it."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of each side in each repeat."""

    seconds: Mapping[str, list[float]]
    peak_bytes: Mapping[str, int | None]
    """The most memory that the process held meanwhile, or its tensors on a GPU; None if unknown."""

    def median(self, side: str) -> float:
        """Return the median of a side's seconds."""
        return statistics.median(self.seconds[side])

    def ratios(self, over: str, under: str, factor: int = 1) -> list[float]:
        """Return `factor` times the seconds of one side over those of another, by repeat."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return [factor * numerator / denominator for numerator, denominator in pairs]

    def fastest(self, name: str, sides: Sequence[str]) -> "Times":
        """Return the times with one side more: in each repeat, the fastest of `sides`."""
        seconds = [
            min(repeat) for repeat in zip(*(self.seconds[side] for side in sides), strict=True)
        ]
        return Times(
            seconds={**self.seconds, name: seconds},
            peak_bytes={**self.peak_bytes, name: _most(self.peak_bytes[side] for side in sides)},
        )


def alternate(
    sides: Mapping[str, TimedSide], repeats: int, device: torch.device, say: Callable[[str], None]
) -> Times:
    """Run each side once in every repeat, and time it; `say` is told of repeats.

    Every second repeat goes backwards, so that no side always follows the same other one.

    Returns:
        The times of the sides.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, list[int | None]] = {name: [] for name in sides}
    for number in range(repeats):
        say(f"repeat {number + 1} of {repeats}")
        turn = list(sides.items())
        if number % 2:
            turn.reverse()
        for name, prepare in turn:
            timed = prepare()
            gc.collect()  # else one side pays for what another threw away
            is_reset = _reset_peak(device)
            _synchronise(device)
            began = time.perf_counter()
            timed()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - began)
            peaks[name].append(_peak(device) if is_reset else None)
    return Times(
        seconds=seconds,
        peak_bytes={name: _most(side_peaks) for name, side_peaks in peaks.items()},
    )


def _most(peaks: Iterable[int | None]) -> int | None:
    return max((peak for peak in peaks if peak is not None), default=None)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> bool:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):  # other systems than Linux cannot forget a peak
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
