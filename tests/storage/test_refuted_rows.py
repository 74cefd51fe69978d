"""Which values that nothing proves are refuted, and what becomes of their rows."""

import pytest
from support.synthetic import INF, a_row

from lipbench.storage.refuted_rows import with_refuted


def bound(value, side, name, *flags, **changes):
    more = {"metric": "lipschitz", "norm": 2.0, "domain": "all", "split": ""} | changes
    return a_row(value=value, side=side, estimator=name, flags=flags, **more)


LIAR = bound(0.5, "upper", "liar", "unverified")


@pytest.mark.parametrize(
    "proved",
    [
        bound(0.6, "lower", "honest"),
        bound(0.6, "exact", "honest"),
        bound(0.6, "lower", "honest", domain="[0, 1]"),
    ],
)
def test_a_proved_value_refutes_one_that_is_not(proved):
    refuted, kept = with_refuted([LIAR, proved])
    assert (refuted.status, refuted.flags) == ("invalid", ("unverified", "refuted by honest"))
    assert refuted.value == 0.5
    assert kept == proved


def test_a_lower_value_is_refuted_by_an_upper_one():
    rows = [bound(2.0, "lower", "liar", "unverified"), bound(1.0, "upper", "honest")]
    assert [row.status for row in with_refuted(rows)] == ["invalid", "done"]


@pytest.mark.parametrize(
    "other",
    [
        bound(0.5, "lower", "honest"),
        bound(0.6, "lower", "honest", norm=INF),
        bound(0.6, "lower", "honest", checkpoint="last"),
        bound(0.6, "estimate", "honest"),
        bound(0.6, "upper", "honest"),
        bound(0.6, "lower", "doubtful", "unverified"),
        bound(0.6, "lower", "honest", status="invalid"),
        bound(None, "lower", "honest", status="refused"),
        a_row(value=0.6),
    ],
)
def test_what_does_not_refute_it(other):
    assert with_refuted([LIAR, other]) == [LIAR, other]


def test_a_bound_on_all_of_space_refutes_none_on_a_box():
    rows = [bound(0.5, "upper", "liar", "unverified", domain="[0, 1]")]
    rows.append(bound(0.6, "lower", "honest", domain="[0, 2]"))
    assert with_refuted(rows) == rows


def test_two_proved_values_are_left_to_others():
    rows = [bound(0.5, "upper", "one"), bound(0.6, "lower", "other")]
    assert with_refuted(rows) == rows


def accuracy(metric, value, *flags, epsilon=0.5, n=100, **changes):
    more = {"norm": 2.0, "epsilon": epsilon, "n": n, "estimator": "someone"} | changes
    return a_row(metric=metric, value=value, flags=flags, **more)


def test_an_attack_refutes_an_unverified_certificate():
    certified = accuracy("certified_accuracy", 0.6, "unverified")
    refuted, _ = with_refuted([certified, accuracy("robust_accuracy", 0.5)])
    assert (refuted.status, refuted.flags[-1]) == ("invalid", "refuted by someone")


@pytest.mark.parametrize(
    "other",
    [
        accuracy("robust_accuracy", 0.6),
        accuracy("robust_accuracy", 0.5, epsilon=0.7),
        accuracy("robust_accuracy", 0.5, n=50),
        accuracy("robust_accuracy", 0.5, norm=INF),
        accuracy("certified_accuracy", 0.5),
        accuracy("robust_accuracy", None, status="invalid"),
    ],
)
def test_what_refutes_no_certificate(other):
    rows = [accuracy("certified_accuracy", 0.6, "unverified"), other]
    assert with_refuted(rows) == rows
