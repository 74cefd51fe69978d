import json
from pathlib import Path

import pytest
from support import runs

from lipbench.adversarial.judge import BATCH_SIZE
from lipbench.adversary import Attack
from lipbench.planning.keys import digest
from lipbench.planning.plan import NothingSelected, plan
from lipbench.planning.stacking import LARGEST_ON_CPU
from lipbench.registry import load

CLIP = {"name": "clip", "pairs": 8}


def the_plan(*methods, seeds=(0,), **changes):
    return plan(runs.config(*methods, seeds=seeds, **changes))


def the_cell(*methods, **changes):
    (cell,) = the_plan(*methods, **changes).cells
    return cell


def sizes(made):
    return [len(stack) for stack in made.stacks()]


def test_there_is_a_cell_for_every_method_and_seed():
    made = the_plan("standard", CLIP, seeds=(0, 1, 5))
    found = [(cell.entry.name, cell.seed) for cell in made.cells]
    assert found == [(name, seed) for name in ("standard", "clip") for seed in (0, 1, 5)]
    assert len({cell.key for cell in made.cells}) == 6


def test_seeds_and_real_numbers_share_a_stack():
    driven = [{**CLIP, "target_accuracy": target} for target in (0.8, 0.9)]
    made = the_plan(*driven, {**CLIP, "lambda": 0.1}, {**CLIP, "lambda": 0.2}, seeds=(0, 1))
    assert sizes(made) == [4, 4]


def test_other_code_or_shapes_are_another_stack():
    methods = [CLIP, {**CLIP, "pairs": 16}, {**CLIP, "update": "plain"}, {**CLIP, "epochs": 3}]
    assert sizes(the_plan("standard", *methods)) == [1] * 5


def test_a_stack_has_a_largest_size():
    made = the_plan("standard", seeds=range(LARGEST_ON_CPU + 3))
    assert sizes(made) == [LARGEST_ON_CPU, 3]


def test_a_stack_depends_on_the_whole_file_and_not_on_the_selection():
    settings = runs.several(
        runs.benchmark("standard"), runs.benchmark("standard", name="other"), seeds=(0, 1)
    )
    whole, part = plan(settings), plan(settings, only=["other"])
    assert [cell.stack for cell in whole.cells] == [cell.stack for cell in part.cells]
    assert [cell.benchmark.name for cell in part.selected] == ["other", "other"]


def test_without_stacks_each_cell_is_trained_alone():
    made = plan(runs.config("standard", CLIP, seeds=(0, 1)), stacked=False)
    assert sizes(made) == [1] * 4


def test_every_cell_of_a_stack_knows_its_siblings():
    cells = the_plan("standard", seeds=(0, 1, 2)).cells
    for cell in cells:
        assert [(c.key, c.seed) for c in cell.siblings()] == [(c.key, c.seed) for c in cells]


def training(**changes):
    # One thing differs from what the cells have otherwise.
    return {"training": runs.benchmark()["training"] | changes}


TRAINING = [
    {"model": {"name": "mlp", "widths": [17], "activation": "relu"}},
    {"dataset": {**runs.DATASET, "train_size": 127}},
    {"dataset": {**runs.DATASET, "split_seed": 1}},
    training(epochs=3),
    training(batch_size=17),
    training(warmup=1),
    training(optimizer={"name": "adam", "lr": 0.03}),
    training(dtype="float64"),
    training(precision="tf32"),
    training(precision="bf16"),
    {"selection": "last"},
    {"seeds": (1,)},
]


@pytest.mark.parametrize("changes", TRAINING, ids=repr)
def test_what_determines_the_trained_numbers_is_in_the_train_key(changes):
    assert the_cell("standard", **changes).key != the_cell("standard").key


def test_a_field_of_the_method_is_in_the_train_key_but_at_its_default():
    assert the_cell({**CLIP, "tau": 2.0}).key != the_cell(CLIP).key
    assert the_cell({**CLIP, "tau": 1.0}).key == the_cell(CLIP).key
    assert the_cell({**CLIP, "tau": 2.0}).inputs["method"]["fields"] == {"pairs": 8, "tau": 2.0}
    assert the_cell(CLIP).inputs["training"] == {
        "epochs": 2,
        "batch_size": 16,
        "warmup": 0,
        "optimizer": {"name": "adam", "lr": 0.02},
    }


def test_what_drives_a_strength_is_in_the_train_key():
    driven = {**CLIP, "target_accuracy": 0.9}
    slower = {**driven, "discrepancy": {"step": 0.1}}
    same = {**driven, "discrepancy": {"step": 0.2}}
    keys = [the_cell(one).key for one in (CLIP, driven, slower, {**CLIP, "path": [0.1, 0.2]})]
    assert len(set(keys)) == 4
    assert the_cell(same).key == the_cell(driven).key
    assert the_cell(slower).inputs["method"]["discrepancy"] == {"step": 0.1}


def test_settings_of_one_method_alone_are_in_its_train_key():
    alone = the_cell({**CLIP, "epochs": 3})
    assert alone.key != the_cell(CLIP).key
    assert alone.key == the_cell(CLIP, **training(epochs=3)).key


def test_the_key_is_the_digest_of_what_is_recorded():
    cell = the_cell(CLIP)
    assert digest(cell.inputs) == cell.key


def test_names_and_evaluation_are_not_in_the_train_key():
    """A new attack never retrains."""
    same = {"name": "renamed", **runs.evaluation(attack=[], bound=[], noise=[])}
    assert the_cell("standard", **same).key == the_cell("standard").key


def test_each_entry_of_the_evaluation_has_its_own_key():
    cell = the_cell("standard")
    assert [one.kind for one in cell.evaluations] == ["plain", "noise", "attack", "bound", "bound"]
    assert len({one.key for one in cell.evaluations}) == 5


def test_a_new_attack_leaves_the_other_eval_keys():
    more = runs.evaluation(attack=[runs.PGD, {**runs.PGD, "steps": 3}])
    old, new = ({one.key for one in the_cell("standard", **c).evaluations} for c in ({}, more))
    assert len(new - old) == 1
    assert old < new


def eval_key(kind, index=0, **changes):
    """Return the key of an evaluation, which differs in `changes` from what the tests have."""
    evaluations = the_cell("standard", **runs.evaluation(**changes)).evaluations
    return [one.key for one in evaluations if one.kind == kind][index]


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"epsilon": [0.1]}, {"norm": float("inf")}, {"size": 20}],
)
def test_a_setting_of_an_attack_is_in_its_eval_key(change):
    changed = eval_key("attack", attack=[{**runs.PGD, **change}])
    assert changed != eval_key("attack", attack=[runs.PGD])


@pytest.mark.parametrize("change", [{"norm": 1}, {"domain": [0, 1]}, {"points": 5}])
def test_a_setting_of_a_bound_is_in_its_eval_key(change):
    plain = {"name": "jacobian", "points": 4}
    assert eval_key("bound", bound=[{**plain, **change}]) != eval_key("bound", bound=[plain])
    assert eval_key("bound", bound=[{**plain, "norm": 2}]) == eval_key("bound", bound=[plain])


def test_the_bounds_before_it_are_in_the_eval_key_of_a_bound():
    """A search may start from what they found."""
    alone, second = eval_key("bound", bound=["jacobian"]), eval_key("bound", 1)
    assert len({alone, second, eval_key("bound", 1, bound=["gram", "jacobian"])}) == 3


def test_samples_at_a_time_are_in_the_key_of_an_attack_that_draws_by_batch(monkeypatch):
    keys = [eval_key("attack", batch_size=size) for size in ("none", BATCH_SIZE, 7)]
    assert len(set(keys)) == 1  # each sample has numbers of its own
    monkeypatch.setattr(load("lipbench.attacks", "pgd", Attack), "samplewise", False)
    keys = [eval_key("attack", batch_size=size) for size in ("none", BATCH_SIZE, 7)]
    assert keys[0] == keys[1] != keys[2]


def test_the_size_of_the_test_is_in_all_eval_keys():
    sizes = [
        {e.key for e in the_cell("standard", **runs.evaluation(**part)).evaluations}
        for part in ({}, {"test_size": 39})
    ]
    assert not sizes[0] & sizes[1]


def test_eval_keys_follow_the_train_key():
    one, other = (the_cell("standard", seeds=(seed,)) for seed in (0, 1))
    assert not {e.key for e in one.evaluations} & {e.key for e in other.evaluations}


def test_the_column_params_has_all_fields_and_what_drives_the_strength():
    params = json.loads(the_cell({**CLIP, "target_accuracy": 0.9}).params)
    assert params["lambda"] == 0.0
    assert params["target_accuracy"] == 0.9
    assert params["discrepancy"]["rule"] == "adaptive"
    assert the_cell("standard").params == "{}"


def test_an_override_of_the_training_tells_two_rows_apart():
    made = the_plan("standard", {"name": "standard", "epochs": 5})
    assert len({cell.params for cell in made.cells}) == 2


def test_a_name_that_is_not_there_is_refused_with_a_hint():
    with pytest.raises(NothingSelected, match=r"no benchmark 'tinny'; did you mean 'tiny'\?"):
        plan(runs.config("standard"), only=["tinny"])


def test_the_description_counts_cells_epochs_and_stacks():
    text = the_plan("standard", {**CLIP, "path": [0.0, 1.0]}, seeds=(0, 1)).describe()
    assert "4 cells in 2 stacks; estimated time" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["tiny", "Standard", "2", "2", "2"] in lines
    assert any(line[-3:] == ["2", "4", "2"] for line in lines)


def test_what_is_written_down_is_found_again(tmp_path):
    made = the_plan("standard")
    (planned,) = made.planned()
    (cell,) = made.cells
    assert planned.key == cell.key
    assert tmp_path / planned.folder == cell.folder(tmp_path).path
    assert planned.evaluations == tuple(one.key for one in cell.evaluations)
    assert json.loads(planned.dataset)["name"] == "digits"


PUBLISHED = sorted(Path(__file__).parents[2].glob("results/*/*.toml"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_configurations_of_published_runs_can_be_planned(path):
    if path.parent.name.startswith("zoo"):
        pytest.importorskip("deel.torchlip")
        pytest.importorskip("orthogonium")
    assert plan(path).cells
