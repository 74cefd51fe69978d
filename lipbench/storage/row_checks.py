"""Checks of stored rows: whose they are, and whether their numbers can be true, and all at once."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter

from lipbench.storage.files import parse_json
from lipbench.storage.row_kinds import KINDS, NORMS
from lipbench.storage.rows import UNVERIFIED, Row

TOLERANCE = 1e-9
"""Relative difference in float64 below which two bounds do not cross."""
TIES = 1000
"""One sample in so many may lie where a network answers otherwise in float32 than in float64."""
_OF_CELL = ("benchmark", "dataset", "model", "method", "params", "seed", "train_key")

Problem = tuple[Row, str]
"""A row, and what is wrong with it."""


def misplaced(rows: Iterable[Row], blank: Row, eval_key: str) -> list[Problem]:
    """Return the rows of another cell than that of `blank`, or of another evaluation."""
    problems = []
    for row in rows:
        for column in _OF_CELL:
            if getattr(row, column) != getattr(blank, column):
                told, true = getattr(row, column), getattr(blank, column)
                problems.append((row, f"has rows of {column} {told!r} in place of {true!r}"))
        if row.eval_key != eval_key:
            problems.append((row, f"has rows of the evaluation {row.eval_key!r}"))
    return problems


def untenable(rows: Sequence[Row]) -> list[Problem]:
    """Return the rows whose numbers cannot be true: each by itself, or beside another."""
    problems = [(row, reason) for row in rows if (reason := _implausible(row))]
    wrong = {id(row) for row, _ in problems}
    sound = [row for row in rows if id(row) not in wrong]
    problems += _repeated(sound)
    for group in _grouped(sound, _network):
        # What nothing proves contradicts nothing: it is refuted, and ends nothing.
        measured = [
            row
            for row in group
            if row.status == "done" and row.value is not None and UNVERIFIED not in row.flags
        ]
        problems += [*_crossings(measured), *_refuted(measured), *_accuracies(measured)]
        problems += _unordered(measured)
    return problems


def foreign(rows: Sequence[Row]) -> list[Problem]:
    """Return the rows whose train key is also that of another method, seed or data set."""
    problems = []
    owner: dict[Hashable, tuple[object, ...]] = {}
    for row in rows:
        cell = (row.dataset, row.model, row.method, row.params, row.seed)
        if row.train_key and owner.setdefault((row.benchmark, row.train_key), cell) != cell:
            problems.append((row, f"shares its train key {row.train_key} with another cell"))
        if row.train_key and owner.setdefault((row.benchmark, *cell), (row.train_key,)) != (
            row.train_key,
        ):
            problems.append((row, "has another train key than the other rows of its cell"))
    return problems


def _implausible(row: Row) -> str:
    """Return why a row cannot be true whatever the others say, empty if it can."""
    kind = KINDS.get(row.metric.partition("[")[0])
    if kind is None:
        return f"there is no metric {row.metric!r}"
    if row.side not in kind.sides:
        return f"{_named(row)} is never on the side {row.side!r}"
    if row.n is not None and row.n <= 0:
        return f"{_named(row)} is of {row.n} samples"
    if not _are_objects(row.dataset, row.model, row.params):
        return f"{_named(row)} has a data set, model or params that are no JSON object"
    return _odd_threat(row) or _odd_value(row)


def _odd_threat(row: Row) -> str:
    """Return what is wrong with norm, epsilon and domain of a row."""
    kind = KINDS[row.metric.partition("[")[0]]
    needs_norm = kind.has_norm and row.status == "done"
    if (needs_norm or row.norm is not None) and row.norm not in NORMS:
        return f"{_named(row)} is in no norm"
    needs = kind.has_epsilon and row.status == "done"
    if (needs or row.epsilon is not None) and not 0 <= (row.epsilon or 0.0) < math.inf:
        return f"{_named(row)} has the epsilon {row.epsilon}"
    if needs and row.epsilon is None:
        return f"{_named(row)} has no epsilon"
    try:
        box = row.box
    except ValueError:
        return f"{_named(row)} has the domain {row.domain!r}"
    if kind.has_domain and not row.domain and row.status == "done":
        return f"{_named(row)} has no domain"
    return "" if box is None or box[0] <= box[1] else f"{_named(row)} has the domain {row.domain!r}"


def _odd_value(row: Row) -> str:
    """Return what is wrong with the value of a row."""
    kind = KINDS[row.metric.partition("[")[0]]
    value = row.value
    if value is None:
        lacks = row.status == "done" and not kind.may_lack
        return f"{_named(row)} has no value" if lacks else ""
    if row.status == "invalid":
        return ""
    if row.status != "done":
        return f"{_named(row)} is {row.status} and has a value"
    if not kind.holds(value):
        return f"{_named(row)} is {value!r}"
    if row.side == "lower" and row.metric == "lipschitz" and value == math.inf:
        return f"{_named(row)} is {value!r}"
    if kind.is_count and row.n and abs(value * row.n - round(value * row.n)) > 1e-6:
        return f"{_named(row)} is {value!r}, which is no share of {row.n} samples"
    return ""


@lru_cache(maxsize=4096)
def _are_objects(*texts: str) -> bool:
    try:
        return all(isinstance(parse_json(text), dict) for text in texts)
    except ValueError:
        return False


def _network(row: Row) -> Hashable:
    return (row.benchmark, row.method, row.params, row.seed, row.train_key, row.checkpoint)


def _repeated(rows: Iterable[Row]) -> Iterator[Problem]:
    what = attrgetter(
        *("eval_key", "split", "metric", "norm", "epsilon", "domain", "estimator", "side")
    )
    seen: set[Hashable] = set()
    for row in rows:
        key = (_network(row), what(row))
        if key in seen:
            yield row, f"{_named(row)} is there twice"
        seen.add(key)


def _crossings(rows: Sequence[Row]) -> Iterator[Problem]:
    bounds = [row for row in rows if row.metric == "lipschitz"]
    lowers = [row for row in bounds if row.side in ("lower", "exact")]
    for lower in lowers:
        for upper in bounds:
            if upper.side in ("upper", "exact") and _exceeds(lower, upper, TOLERANCE):
                reason = f"{_valued(lower)} exceeds {_valued(upper)}"
                yield from ((lower, reason), (upper, reason))


def _refuted(rows: Sequence[Row]) -> Iterator[Problem]:
    lowers = [r for r in rows if r.metric == "lipschitz" and r.side in ("lower", "exact")]
    for claim in (row for row in rows if row.metric == "claimed_lipschitz"):
        slack = [f.removeprefix("tolerance=") for f in claim.flags if f.startswith("tolerance=")]
        tolerance = _number(slack[-1]) if slack else 0.0
        for lower in lowers:
            if _exceeds(lower, claim, tolerance + TOLERANCE):
                reason = f"{_valued(lower)} refutes {_valued(claim)}"
                yield from ((lower, reason), (claim, reason))


def _exceeds(lower: Row, upper: Row, tolerance: float) -> bool:
    assert lower.value is not None
    assert upper.value is not None
    comparable = lower.norm == upper.norm and _inside(lower.box, upper.box)
    return comparable and lower.value > upper.value * (1 + tolerance)


def _inside(inner: tuple[float, float] | None, outer: tuple[float, float] | None) -> bool:
    if outer is None:
        return True
    return inner is not None and outer[0] <= inner[0] and inner[1] <= outer[1]


def _accuracies(rows: Sequence[Row]) -> Iterator[Problem]:
    """Yield accuracies that are below what they cannot be below: certified, attacked, clean."""
    by_metric = {
        metric: [row for row in rows if row.metric == metric and row.split == "test" and row.n]
        for metric in ("certified_accuracy", "robust_accuracy", "test_accuracy")
    }
    certified, attacked, clean = by_metric.values()
    for less in certified:
        for more in attacked:
            same = less.norm == more.norm and _reaches(less, more) and _inside(more.box, less.box)
            if same and _outnumbers(less, more):
                reason = f"{_valued(less)} exceeds {_valued(more)}"
                yield from ((less, reason), (more, reason))
    for less in (*certified, *attacked):
        for more in clean:
            if _outnumbers(less, more):
                reason = f"{_valued(less)} exceeds {_valued(more)}"
                yield from ((less, reason), (more, reason))


def _reaches(certified: Row, attacked: Row) -> bool:
    """Return whether a certificate speaks of all that an attack may do."""
    return (certified.epsilon or 0.0) >= (attacked.epsilon or 0.0)


def _outnumbers(less: Row, more: Row) -> bool:
    """Return whether there are more samples of `less` than there can be by `more`.

    Both are of the first samples of one split, of how many ever.
    """
    assert less.value is not None
    assert less.n is not None
    assert more.value is not None
    assert more.n is not None
    beyond = max(0, less.n - more.n)
    ties = min(less.n, more.n) // TIES
    return round(less.value * less.n) - beyond > round(more.value * more.n) + ties


def _unordered(rows: Sequence[Row]) -> Iterator[Problem]:
    """Yield certified accuracies that grow with epsilon, and quantiles that fall with the level."""
    sign: dict[str, float] = {"certified_accuracy": -1.0, "certified_radius_quantile": 1.0}
    ordered = [row for row in rows if row.metric.partition("[")[0] in sign]

    def series(row: Row) -> Hashable:
        metric = row.metric.partition("[")[0]
        return (metric, row.eval_key, row.norm, row.domain, row.estimator, row.n)

    for group in _grouped(ordered, series):
        metric = group[0].metric.partition("[")[0]
        for before, after in pairwise(sorted(group, key=_place)):
            assert before.value is not None
            assert after.value is not None
            if sign[metric] * (after.value - before.value) < 0:
                reason = f"{_valued(after)} does not follow {_valued(before)}"
                yield from ((before, reason), (after, reason))


def _place(row: Row) -> float:
    if row.metric == "certified_accuracy":
        return row.epsilon or 0.0
    return _number(row.metric.partition("[")[2].rstrip("]"))


def _grouped(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> Iterator[list[Row]]:
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    yield from groups.values()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _named(row: Row) -> str:
    """Return which number a row is, for messages."""
    words = (row.side, row.estimator, row.metric)
    at = "" if row.epsilon is None else f"at {row.epsilon:g}"
    norm = "" if row.norm is None else f"in norm {row.norm:g}"
    return " ".join(filter(None, (*words, at, norm)))


def _valued(row: Row) -> str:
    return f"{_named(row)} {row.value!r}"
