import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.synthetic import (
    INF,
    a_row,
    a_run,
    as_row_of,
    failure,
    measurements,
    write_rows,
    write_sealed,
)

from lipbench.storage.cell_folder import CellFolder
from lipbench.storage.outcomes import outcome_name
from lipbench.storage.results import PlanMissing
from lipbench.storage.rows import read_rows
from lipbench.tables.labels import display_name, labels
from lipbench.tables.paper import printed_row
from lipbench.tables.sources import Source, load
from lipbench.tables.statistics import paired_interval
from lipbench.tables.table import blocks, build, table_text

TARGET = '{"target_accuracy": 0.95}'


def three_seeds(method="standard", params="{}", tests=(0.90, 0.91, 0.92), **more):
    return [
        row
        for seed, test in enumerate(tests)
        for row in measurements(test, seed=seed, method=method, params=params, **more)
    ]


def the_block(rows, **options):
    (block,) = build(Source(name="run", rows=tuple(rows)), **options)
    return block


def entry(block, heading, line=0):
    (index,) = [n for n, c in enumerate(block.columns) if c.heading == heading]
    return block.lines[line].entries[index]


def test_strengths_of_different_methods_share_a_column():
    """
    As in the paper: mu or lambda, each row its own.
    """
    rows = [
        a_row(method="clip", metric="strength[lambda]", value=0.5),
        a_row(method="weight_regularization", metric="strength[mu]", value=0.25),
    ]
    block = the_block(rows)

    assert [column.heading for column in block.columns] == ["lambda, mu"]
    assert [line.entries[0].mean for line in block.lines] == [0.5, 0.25]


def test_more_than_three_names_of_strengths_are_not_spelt_out():
    names = ("alpha", "beta", "lambda", "mu")
    rows = [a_row(method=name, metric=f"strength[{name}]", value=0.5) for name in names]
    assert [column.heading for column in the_block(rows).columns] == ["Strength"]


def test_every_norm_has_its_certified_accuracy_and_l2_the_other_columns():
    """Whichever norm was bounded first."""
    rows = []
    for norm in (INF, 2.0):
        common = {"norm": norm, "value": 0.5}
        rows += [
            a_row(metric="certified_accuracy", side="lower", epsilon=0.1, **common),
            a_row(metric="certified_radius_quantile[0.5]", side="lower", **common),
            a_row(metric="lipschitz", side="upper", **common),
        ]
    assert [(c.heading, c.norm) for c in the_block(rows).columns] == [
        ("Certified", 2.0),
        ("Certified", INF),
        ("Radius", 2.0),
        ("Lipschitz upper", 2.0),
    ]


def test_the_columns_are_those_of_the_paper_and_then_ours():
    block = the_block(three_seeds(strength=0.5))
    assert [(c.heading, c.norm, c.epsilon, c.note) for c in block.columns] == [
        ("Train", None, None, ""),
        ("Test", None, None, ""),
        ("Noise", None, None, "sigma = 1, unclamped"),
        ("Signed steps", 2.0, 2.0, ""),
        ("lambda", None, None, ""),
        ("PGD", INF, 0.1, ""),
        ("Certified", 2.0, 0.25, ""),
        ("Lipschitz lower", 2.0, None, ""),
        ("Lipschitz upper", 2.0, None, ""),
        ("Ratio", 2.0, None, ""),
    ]


def test_without_a_marked_attack_the_first_one_in_l2_is_shown_at_its_largest_radius():
    rows = [replace(row, flags=()) for row in three_seeds()]
    assert next((c.heading, c.epsilon) for c in the_block(rows).columns if c.norm == 2.0) == (
        "PGD",
        2.0,
    )


def test_a_number_is_mean_and_standard_deviation_over_seeds():
    test = entry(the_block(three_seeds(tests=(0.90, 0.91, 0.95))), "Test")
    assert test.mean == pytest.approx(0.92)
    assert test.deviation == pytest.approx(0.0264575131)
    assert test.values == {0: 0.90, 1: 0.91, 2: 0.95}


def test_one_seed_has_no_deviation():
    text = table_text_of(measurements(0.9), "markdown")
    assert "| 90.0 |" in " ".join(text.split())


def test_failed_seeds_are_counted_and_never_averaged():
    rows = [*three_seeds(tests=(0.90, 0.92)), failure("nan", seed=2)]
    block = the_block(rows)
    assert entry(block, "Test").mean == pytest.approx(0.91)
    assert (block.lines[0].done, block.lines[0].seeds) == (2, 3)
    assert "Standard: 2/3 seeds; without a number: seed 2 (nan)." in block.warnings
    assert "2/3" in table_text_of(rows, "plain")


def test_a_method_of_which_all_seeds_failed_shows_dashes():
    rows = three_seeds() + [failure("oom", seed=s, method="clip", params=TARGET) for s in range(3)]
    line = table_text_of(rows, "markdown").splitlines()[5]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["CLIP (.95)", "0/3", *"-" * 9]


def test_a_benchmark_without_any_number_still_lists_its_methods():
    assert "0/1" in table_text_of([failure("timeout", seed=0)], "latex")


@pytest.mark.parametrize("status", ["failed", "timeout", "refused", "invalid"])
def test_a_row_that_is_not_done_is_no_number(status):
    rows = [a_row(seed=0, value=0.5), a_row(seed=1, value=0.9, status=status)]
    assert entry(the_block(rows), "Test").values == {0: 0.5}


def test_a_measured_nan_is_no_number_and_the_column_says_how_many_are():
    rows = [a_row(seed=0, value=0.5), a_row(seed=1, value=float("nan")), a_row(seed=2, value=0.7)]
    assert entry(the_block(rows), "Test").values == {0: 0.5, 2: 0.7}
    assert "± 14.1 (2)" in table_text_of(rows, "plain")


def test_of_several_valid_bounds_of_one_network_the_tightest_counts():
    block = the_block(measurements(lower=2.0, upper=50.0))
    assert entry(block, "Lipschitz lower").mean == 2.0
    more = {"metric": "lipschitz", "side": "upper", "norm": 2.0}
    rows = [
        *measurements(upper=50.0),
        a_row(value=40.0, domain="all", estimator="sharper", **more),
        a_row(value=1.0, domain="[0, 1]", estimator="local", **more),
        a_row(value=3.0, domain="all", estimator="unsure", flags=("unverified",), **more),
    ]
    assert entry(the_block(rows), "Lipschitz upper").mean == 40.0


def test_the_ratio_is_that_of_the_tightest_bounds_of_each_seed():
    more = {"metric": "lipschitz", "side": "upper", "norm": 2.0, "domain": "all"}
    rows = [
        *measurements(lower=2.0, upper=50.0),
        a_row(value=40.0, estimator="sharper", **more),
        *measurements(seed=1, lower=0.0, upper=50.0),
        *measurements(seed=2, lower=5.0, upper=5.0),
    ]
    assert entry(the_block(rows), "Ratio").values == {0: 20.0, 2: 1.0}
    assert "Ratio: upper over lower Lipschitz bound" in table_text_of(rows, "plain")


def test_without_a_lower_bound_there_is_no_ratio():
    rows = [row for row in measurements() if (row.metric, row.side) != ("lipschitz", "lower")]
    assert "Ratio" not in [column.heading for column in the_block(rows).columns]


def test_the_median_radius_is_that_of_the_best_certificate():
    more = {"metric": "certified_radius_quantile[0.5]", "side": "lower", "norm": 2.0}
    rows = [
        *measurements(),
        *(a_row(value=v, estimator=e, **more) for v, e in [(0.1, "a"), (0.3, "b")]),
    ]
    assert entry(the_block(rows), "Radius").mean == 0.3


def test_a_gap_of_more_than_a_thousand_is_called_possibly_blind():
    """C9: the lower bound of a network with saturated units says nothing."""
    assert not the_block(measurements(lower=1.0, upper=999.0)).warnings
    (warning,) = the_block(measurements(lower=1.0, upper=1001.0)).warnings
    assert "blind (saturated units)" in warning
    assert "1e+03 times" in warning
    (warning,) = the_block(measurements(lower=0.0, upper=1.0)).warnings
    assert "infinitely" in warning


def test_a_flag_of_a_network_is_told_with_the_number_of_seeds():
    missed = a_row(seed=0, method="clip", params=TARGET, flags=("target_missed",))
    rows = [*three_seeds(), missed]
    assert "CLIP (.95): target_missed for 1 of 1 seeds." in the_block(rows).warnings


def test_what_could_not_be_measured_is_told_with_its_reason():
    """An attack that broke its contract has no column: somebody has to say why."""
    gaps = [
        a_row(
            metric="robust_accuracy",
            estimator="weird",
            status="invalid",
            value=None,
            seed=seed,
            flags=("it proposed NaN.",),
            method="clip",
            params=TARGET,
        )
        for seed in (0, 1)
    ]
    (warning,) = the_block([*three_seeds(), *gaps]).warnings
    assert warning == (
        "CLIP (.95): for 2 of 2 seeds weird robust_accuracy invalid: it proposed NaN."
    )


def test_other_checkpoints_are_shown_only_when_asked_for():
    rows = [a_row(value=0.9), a_row(value=0.8, checkpoint="last")]
    assert entry(the_block(rows), "Test").mean == 0.9
    assert entry(the_block(rows, checkpoint="last"), "Test").mean == 0.8


def test_a_regression_shows_its_error_at_the_last_checkpoint():
    rows = [
        a_row(checkpoint="last", metric="mse", split=split, value=value)
        for split, value in (("train", 1e-5), ("test", 0.25))
    ]
    block = the_block(rows)
    assert [column.heading for column in block.columns] == ["Train mse", "Test mse"]
    assert block.checkpoint == "last"
    assert "1e-5" in table_text_of(rows, "plain")


def test_a_clear_winner_is_bold_and_a_narrow_one_is_not():
    clear = three_seeds() + three_seeds("clip", TARGET, tests=(0.96, 0.97, 0.98))
    narrow = three_seeds() + three_seeds("clip", TARGET, tests=(0.905, 0.91, 0.921))
    assert entry(the_block(clear), "Test", 1).best
    assert not entry(the_block(clear), "Test", 0).best
    assert not any(e.best for line in the_block(narrow).lines for e in line.entries)


def test_the_same_difference_on_fewer_images_is_not_bold():
    rows = three_seeds() + three_seeds("clip", TARGET, tests=(0.96, 0.97, 0.98))
    few = [replace(row, n=100) for row in rows]
    assert not entry(the_block(few), "Test", 1).best


def test_one_seed_is_never_bold_nor_are_ties():
    rows = measurements(0.5) + measurements(0.9, method="clip", params=TARGET)
    assert not entry(the_block(rows), "Test", 1).best
    tie = three_seeds() + three_seeds("clip", TARGET)
    assert not any(e.best for line in the_block(tie).lines for e in line.entries)


def test_pairs_are_formed_over_the_seeds_that_both_have():
    rows = three_seeds(tests=(0.90,)) + three_seeds("clip", TARGET, tests=(0.96, 0.97, 0.98))
    assert not entry(the_block(rows), "Test", 1).best


def test_outcomes_per_image_sharpen_the_comparison(tmp_path):
    """Methods that err on nested sets of images are told apart sooner than their means are."""
    cells = []
    for method, wrong in (("standard", 40), ("clip", 10)):
        for seed in range(3):
            rows = [a_row(seed=seed, method=method, n=1000, value=1 - (wrong + seed) / 1000)]
            cells.append((method, {}, seed, "done", rows))
    planned = a_run(tmp_path, cells)
    for cell in planned:
        (row,) = (
            r for m, _, s, _, rows in cells if (m, s) == (cell.method, cell.seed) for r in rows
        )
        write_sealed(CellFolder(tmp_path / cell.folder), "e0", [as_row_of(cell, row)])
    (block,) = blocks(tmp_path)
    assert not entry(block, "Test", 1).best
    for cell in planned:
        wrong = (40 if cell.method == "standard" else 10) + cell.seed
        outcomes = {outcome_name(a_row()): (np.arange(1000) >= wrong).astype(np.uint8)}
        folder = CellFolder(tmp_path / cell.folder)
        save_file(outcomes, folder.samples("e0"))
        write_sealed(folder, "e0", read_rows(folder.rows("e0")))
    (block,) = blocks(tmp_path)
    assert entry(block, "Test", 1).best


def test_the_name_of_outcomes_says_all_that_tells_them_apart():
    row = a_row(metric="robust_accuracy", estimator="pgd", norm=INF, epsilon=0.1)
    assert outcome_name(row) == "chosen/robust_accuracy/pgd/inf/0.1"
    assert outcome_name(a_row()) == "chosen/test_accuracy///"


def test_student_t_by_hand():
    """Mean 2, s = 1, n = 3: 2 ± 4.302653 / sqrt(3)."""
    low, high = paired_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_more_variance_or_confidence_never_narrows_the_interval(differences, variance, more):
    low, high = paired_interval(differences, variance)
    wide_low, wide_high = paired_interval(differences, variance + more, confidence=0.99)
    assert wide_low <= low <= high <= wide_high


def test_fewer_than_two_seeds_say_nothing():
    assert paired_interval([0.5]) == (-INF, INF)


@pytest.mark.parametrize("arguments", [([0.1, 0.2], -1.0, 0.95), ([0.1, 0.2], 0.0, 1.0)])
def test_an_impossible_interval_is_refused(arguments):
    with pytest.raises(ValueError, match="must"):
        paired_interval(*arguments)


def test_labels_name_the_target_and_only_what_tells_rows_apart():
    rows = [
        ("standard", "{}"),
        ("weight_regularization", '{"power": 2, "target_accuracy": 0.95}'),
        ("weight_regularization", '{"power": 2, "target_accuracy": 0.9}'),
        ("clip", '{"tau": 1, "pairs": 64, "free": true, "target_accuracy": 0.85}'),
        ("clip", '{"tau": 2, "pairs": 64, "free": false, "target_accuracy": 0.85}'),
        ("spectral_norm", '{"constants": [1, 2.5]}'),
    ]
    assert labels(rows) == [
        "Standard",
        "Weight regularization (.95)",
        "Weight regularization (.90)",
        "CLIP (.85, free = yes)",
        "CLIP (.85, free = no)",
        "Spectral norm",
    ]


def test_a_strange_name_is_a_label_too():
    assert display_name("torchattacks:PGD") == "Torchattacks PGD"
    assert display_name("pgd_at") == "PGD AT"
    assert display_name("fast_at") == "Fast AT"
    assert display_name("gradient_lipschitz") == "Gradient Lipschitz"
    assert display_name("_") == "_"


@pytest.mark.parametrize("params", ["", "null", "[1]", "{broken"])
def test_params_that_are_no_object_do_not_stop_a_table(params):
    assert table_text_of([a_row(params=params)], "plain")


def test_the_papers_numbers_stand_beside_ours_only_when_asked_for():
    rows = three_seeds("clip", TARGET, strength=0.02)
    assert entry(the_block(rows, paper=True), "Test").printed == 90.7
    assert entry(the_block(rows, paper=True), "lambda").printed == 0.01
    assert entry(the_block(rows), "Test").printed is None
    text = table_text_of(rows, "plain", paper=True)
    assert "91.0 ± 1.0 [90.7]" in text
    assert "arXiv:2103.12531" in text


def test_the_paper_has_seven_rows_for_either_data_set():
    printed = [
        printed_row(dataset, method, target)
        for dataset in ("mnist", "fashion_mnist")
        for method in ("standard", "weight_regularization", "clip")
        for target in (None, 0.95, 0.90, 0.85)
    ]
    assert len([row for row in printed if row]) == 14
    assert printed_row("mnist", "clip", 0.9).attack == 36.2
    assert printed_row("digits", "clip", 0.9) is None


def test_the_csv_has_the_numbers_in_full():
    rows = three_seeds(tests=(0.9, 0.91, 1 / 3))
    table = list(csv.DictReader(io.StringIO(table_text_of(rows, "csv"))))
    (line,) = [line for line in table if line["column"] == "Test"]
    assert float(line["mean"]) == entry(the_block(rows), "Test").mean
    assert (line["n"], line["seeds"], line["best"]) == ("3", "3", "no")
    assert {line["norm"] for line in table} == {"", "2", "inf"}


def test_a_bar_in_a_name_does_not_break_markdown():
    text = table_text_of([a_row(method="wide|bar")], "markdown")
    assert "Wide\\|bar" in text


def test_equal_numbers_have_no_deviation():
    rows = [a_row(seed=seed, metric="strength[mu]", value=0.1 * 3.1) for seed in range(3)]
    assert "0.31 ± 0" in table_text_of(rows, "plain")


def test_a_benchmark_that_was_not_begun_is_left_out():
    rows = [failure("missing", benchmark="later"), a_row()]
    assert [b.benchmark for b in build(Source(name="run", rows=tuple(rows)))] == ["mnist"]


def test_a_negative_zero_is_a_zero():
    rows = [a_row(value=-0.0), a_row(metric="strength[mu]", value=-0.0)]
    assert "-0" not in table_text_of(rows, "plain")


def test_an_accuracy_just_below_zero_percent_prints_no_sign():
    assert " -0.0" not in table_text_of([a_row(value=-1e-9)], "plain")


@pytest.mark.parametrize("style", ["plain", "latex", "markdown", "csv"])
def test_long_and_foreign_names_do_not_break_a_style(style):
    rows = [
        a_row(method="x" * 300, benchmark="größe λ 中"),
        a_row(metric="strength[mu]", value=1e-12),
    ]
    text = table_text_of(rows, style)
    assert "x" * 299 in text
    assert ("e-12" in text) or ("10^{-12}" in text)


def test_an_unknown_style_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="plain, latex, markdown, csv"):
        table_text(tmp_path, "word")


def test_a_folder_of_runs_gives_the_blocks_of_all(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "results.csv", measurements())
    (tmp_path / "notes").mkdir()
    titles = [block.title for block in blocks(tmp_path)]
    assert titles == ["one: mnist (mnist, mlp)", "two: mnist (mnist, mlp)"]
    assert len(load(tmp_path / "one" / "results.csv")) == 1


def test_a_run_with_cells_is_read_from_its_cells(tmp_path):
    """A damaged results.csv is rebuilt and not believed."""
    a_run(tmp_path, [("standard", {}, 0, "done", [a_row(value=0.7)])])
    (tmp_path / "results.csv").write_text("dam")
    assert "70.0" in table_text(tmp_path, "plain")
    assert "0.7" in (tmp_path / "results.csv").read_text()


def test_a_folder_without_results_is_refused_by_name(tmp_path):
    with pytest.raises(PlanMissing, match=r"no results: .*results\.csv"):
        table_text(tmp_path, "plain")


def test_a_checkpoint_that_nobody_has_is_refused(tmp_path):
    write_rows(tmp_path / "results.csv", [a_row()])
    with pytest.raises(ValueError, match="no checkpoint 'lsat'; it has: chosen"):
        table_text(tmp_path, "plain", checkpoint="lsat")


def table_text_of(rows, style, **options):
    from lipbench.tables import latex, render

    write = {
        "plain": render.plain,
        "latex": latex.latex,
        "markdown": render.markdown,
        "csv": render.csv_text,
    }[style]
    return write(build(Source(name="run", rows=tuple(rows)), **options))


def test_all_benchmarks_of_a_file_keep_their_order():
    rows = [a_row(benchmark=name) for name in ("b", "a", "b")]
    source = Source(name="run", rows=tuple(rows))
    assert [block.benchmark for block in build(source)] == ["b", "a"]
    assert json.loads(build(source)[0].lines[0].params) == {}


def test_what_is_unverified_makes_no_cell_and_is_told():
    """Neither an upper bound, nor what it certifies, nor a ratio."""
    more = {"norm": 2.0, "domain": "all", "estimator": "unsure", "flags": ("unverified",)}
    rows = [
        *measurements(lower=2.0, upper=50.0),
        a_row(value=3.0, metric="lipschitz", side="upper", **more),
        a_row(value=0.8, metric="certified_accuracy", epsilon=0.25, side="lower", **more),
        a_row(value=0.7, metric="certified_radius_quantile[0.5]", side="lower", **more),
    ]
    block = the_block(rows)
    assert entry(block, "Lipschitz upper").mean == 50.0
    assert entry(block, "Ratio").mean == 25.0
    assert entry(block, "Certified").mean == pytest.approx(0.3 * 0.9)
    assert "Radius" not in [column.heading for column in block.columns]
    told = [warning for warning in block.warnings if "unsure" in warning]
    assert "unsure lipschitz is unverified, and in no column" in told[0]
    assert len(told) == 3


def test_with_unverified_bounds_alone_there_is_no_column():
    rows = [row for row in measurements() if row.metric != "lipschitz"]
    more = {"norm": 2.0, "domain": "all", "metric": "lipschitz", "flags": ("unverified",)}
    rows += [a_row(value=v, side=side, **more) for v, side in ((1.0, "lower"), (3.0, "upper"))]
    headings = [column.heading for column in the_block(rows).columns]
    assert not {"Lipschitz lower", "Lipschitz upper", "Ratio"} & set(headings)
