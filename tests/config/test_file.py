"""A configuration is read without guessing, and all its mistakes are told at once."""

import contextlib
import copy
import json
import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lipbench
from lipbench.config.file import ConfigError, parse, read
from lipbench.config.resolved import resolved
from lipbench.fields import fields_json
from lipbench.method import Method
from lipbench.norm import Norm
from lipbench.registry import is_family, load, names, variants

PLUGINS = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from lipbench.adversary import Attack
from lipbench.bound import Bound
from lipbench.dataset import Dataset
from lipbench.method import Method, Strength
from lipbench.model import Model
from lipbench.norm import Norm

@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    def loss(self, net, batch, state, draw, h):
        return batch.loss(net(batch.inputs)), state

@dataclass(frozen=True, kw_only=True)
class Penalised(Plain):
    strength: ClassVar[Strength] = Strength(field="lambda_")
    lambda_: float = 0.0
    power: Literal[1, 2] = 1
    pairs: int | None = 64
    name_of_layer: str = "all"
    exact: bool = False
    weights: tuple[float, ...] = ()
    norm: Norm = Norm(2.0)
    extra: dict[str, float] | None = None

    def __post_init__(self):
        if not self.lambda_ >= 0:
            raise ValueError(f"lambda must be at least 0, got {self.lambda_}.")

@dataclass(frozen=True, kw_only=True)
class Careless(Plain):
    strength: ClassVar[Strength] = Strength(field="weight")
    weight: float = 0.0

@dataclass(frozen=True, kw_only=True)
class Hiding(Plain):
    epochs: int = 3

@dataclass(frozen=True, kw_only=True)
class Euclidean(Attack):
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})
    steps: int = 10

    def propose(self, model, inputs, labels, threat, rng):
        return inputs

@dataclass(frozen=True, kw_only=True)
class Any(Euclidean):
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0), Norm(float("inf"))})

@dataclass(frozen=True, kw_only=True)
class Family(Euclidean):
    variant: str

    @classmethod
    def variants(cls):
        return ("One", "Two")

@dataclass(frozen=True, kw_only=True)
class Upper(Bound):
    side = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})

    def cost(self, network, norm, domain):
        return 1.0

    def compute(self, network, norm, domain, known=(), inputs=None):
        raise NotImplementedError

@dataclass(frozen=True, kw_only=True)
class Blobs(Dataset):
    input_shape: ClassVar[tuple[int, ...]] = (2,)
    published_outputs: ClassVar[int] = 3

    @property
    def digest(self):
        return "blobs"

    def read(self, folder):
        raise NotImplementedError

@dataclass(frozen=True, kw_only=True)
class Curve(Blobs):
    task = "regression"

@dataclass(frozen=True, kw_only=True)
class Affine(Model):
    widths: tuple[int, ...] = (4,)

    def build(self, input_shape, outputs, rng):
        raise NotImplementedError
"""

PUBLISHED = {
    "methods": {
        "t_plain": "Plain",
        "t_penalty": "Penalised",
        "t_careless": "Careless",
        "t_hiding": "Hiding",
    },
    "attacks": {"t_l2": "Euclidean", "t_any": "Any", "t_family": "Family"},
    "bounds": {"t_upper": "Upper"},
    "datasets": {"t_blobs": "Blobs", "t_curve": "Curve"},
    "models": {"t_affine": "Affine"},
}

TEXT = """\
schema = 1
seeds = [0, 1]

[[benchmark]]
name = "toy"
dataset = { name = "t_blobs", train_size = 100, validation_size = 10 }
model = "t_affine"
training = { epochs = 20, batch_size = 16, optimizer = { name = "sgd", lr = 0.1, momentum = 0.5 } }
selection = { attack = "t_l2", epsilon = 2.0, steps = 3 }

[benchmark.evaluation]
test_size = 50
noise = [{ sigma = 1, clamp = true }]
attack = [
    { name = "t_any", norm = inf, epsilon = [0.05, 0.1] },
    { name = "t_family:Two", epsilon = [1.0] },
]
bound = ["t_upper"]

[[benchmark.method]]
name = "t_plain"

[[benchmark.method]]
name = "t_penalty"
lambda = 1
target_accuracy = 0.95
discrepancy = { rule = "additive", step = 0.5 }
optimizer = { lr = 0.01 }
epochs = 30

[[benchmark.method]]
name = "t_penalty"
path = [10, 1.0, 0.0]
pairs = "none"
"""


@pytest.fixture(autouse=True)
def plugins(publish):
    groups = {
        f"lipbench.{kind}": {name: f"toy_plugins:{cls}" for name, cls in entries.items()}
        for kind, entries in PUBLISHED.items()
    }
    publish("toys", groups, {"toy_plugins.py": PLUGINS})


@pytest.fixture(name="toml")
def _toml(tmp_path):
    def write(text):
        path = tmp_path / "benchmarks.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def problems(toml, tmp_path):
    """Return the problems of the file that `TEXT` becomes when `old` is replaced by `new`."""

    def find(*edits):
        text = TEXT
        for old, new in edits:
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        with pytest.raises(ConfigError) as caught:
            read(toml(text))
        return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]

    return find


def test_the_tables_become_frozen_values(toml):
    config = read(toml(TEXT))
    (benchmark,) = config.benchmarks

    assert (config.schema, config.seeds, config.device) == (1, (0, 1), "auto")
    assert (benchmark.name, benchmark.seeds) == ("toy", (0, 1))
    assert (benchmark.dataset_name, benchmark.dataset.train_size) == ("t_blobs", 100)
    assert (benchmark.model_name, benchmark.model.widths) == ("t_affine", (4,))
    assert (benchmark.training.epochs, benchmark.training.warmup) == (20, 5)
    assert (benchmark.selection.name, benchmark.selection.attack.steps) == ("t_l2", 3)
    assert benchmark.evaluation.noise[0].sigma == 1.0
    assert [entry.name for entry in benchmark.methods] == ["t_plain", "t_penalty", "t_penalty"]


def test_entries_of_an_inline_list_have_their_own_lines(problems):
    """Also where comments and strings hold brackets, and two stand on one line."""
    messages = problems(
        (
            '    { name = "t_family:Two", epsilon = [1.0] },',
            "    # a comment with a { bracket\n"
            '    { name = "t_any", epsilon = [\n      1.0, -1.0,\n    ] }, { name = "t_\\"}x" },\n'
            '    { name = "t_l2", epsilon = [1.0], stepz = 1 },',
        ),
        ('bound = ["t_upper"]', 'bound = ["t_upper",\n"t_uper"]'),
    )
    wanted = {
        17: "attack 2 (t_any)",
        19: 'attack 3 (t_"}x)',
        20: "attack 4 (t_l2)",
        23: "bound 2 (t_uper)",
    }
    assert len(messages) == len(wanted)
    for problem, (line, entry) in zip(messages, wanted.items(), strict=True):
        assert problem.startswith(f"benchmarks.toml:{line}: benchmark 'toy', evaluation, {entry}: ")


def test_a_wrong_plugin_does_not_hide_what_is_wrong_beside_it(problems):
    messages = problems(
        ("lambda = 1\ntarget_accuracy = 0.95", "lambda = -1\ntarget_accuracy = 95"),
        (
            '{ name = "t_any", norm = inf, epsilon = [0.05, 0.1] }',
            '{ name = "t_any", epsilon = [-1], steps = "many" }',
        ),
    )
    assert any("lambda must be at least 0" in problem for problem in messages)
    assert any("target_accuracy must be a fraction" in problem for problem in messages)
    assert any("steps must be a whole number" in problem for problem in messages)
    assert any("epsilon must be finite and ≥ 0" in problem for problem in messages)
    assert len(messages) == 4


def test_splits_larger_than_the_data_set_are_found_before_anything_is_trained(problems):
    (message,) = problems(("train_size = 100", "train_size = 59995"))
    assert "add up to 60005, and there are 60000 training samples" in message
    assert message.startswith("benchmarks.toml:6: ")


def test_a_strings_meaning_is_that_of_a_table_with_a_name(toml):
    long = TEXT.replace('model = "t_affine"', 'model = { name = "t_affine" }')
    long = long.replace('["t_upper"]', '[{ name = "t_upper" }]')

    assert read(toml(TEXT)) == read(toml(long))


def test_norms_default_to_the_only_one_of_the_attack_or_to_two(toml):
    benchmark = read(toml(TEXT)).benchmarks[0]

    assert [entry.norm for entry in benchmark.evaluation.attack] == [Norm(math.inf), Norm(2.0)]
    assert benchmark.selection.norm == benchmark.evaluation.bound[0].norm == Norm(2.0)


def test_a_variant_of_a_family_is_part_of_the_name(toml):
    entry = read(toml(TEXT)).benchmarks[0].evaluation.attack[1]

    assert (entry.name, entry.attack.variant) == ("t_family:Two", "Two")


def test_a_method_overrides_the_training_of_its_benchmark(toml):
    plain, target, _ = read(toml(TEXT)).benchmarks[0].methods

    assert (plain.training.epochs, target.training.epochs) == (20, 30)
    assert (plain.training.optimizer.lr, target.training.optimizer.lr) == (0.1, 0.01)
    assert (target.training.batch_size, target.training.optimizer.momentum) == (16, 0.5)


def test_another_optimiser_starts_from_its_own_defaults(toml):
    changed = TEXT.replace("{ lr = 0.01 }", '{ name = "adam", lr = 0.01 }')
    optimizer = read(toml(changed)).benchmarks[0].methods[1].training.optimizer

    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("adam", 0.01, 0.9)


def test_a_trailing_underscore_is_not_part_of_a_key(toml):
    target = read(toml(TEXT)).benchmarks[0].methods[1]

    assert target.method.lambda_ == 1.0
    assert fields_json(target.method)["lambda"] == 1.0


def test_a_target_brings_a_discrepancy_principle(toml):
    plain, target, path = read(toml(TEXT)).benchmarks[0].methods
    default = TEXT.replace('discrepancy = { rule = "additive", step = 0.5 }', "")

    assert (target.target_accuracy, target.discrepancy.rule) == (0.95, "additive")
    assert plain.discrepancy is path.discrepancy is None
    assert read(toml(default)).benchmarks[0].methods[1].discrepancy is not None


def test_none_stands_for_an_absent_value(toml):
    path = read(toml(TEXT)).benchmarks[0].methods[2]

    assert path.path == (10.0, 1.0, 0.0)
    assert path.method.pairs is None


def test_the_selection_defaults_to_the_last_checkpoint(toml):
    without = TEXT.replace('selection = { attack = "t_l2", epsilon = 2.0, steps = 3 }', "")
    assert read(toml(without)).benchmarks[0].selection == "last"


def test_a_benchmark_may_have_seeds_of_its_own(toml):
    assert read(toml(TEXT.replace('name = "toy"', 'name = "toy"\nseeds = [7]'))).benchmarks[
        0
    ].seeds == (7,)


def test_the_resolved_form_is_json_and_is_read_back_unchanged(toml):
    config = read(toml(TEXT))

    text = json.dumps(resolved(config), allow_nan=False)
    assert parse(_as_toml(json.loads(text))) == config
    assert '"warmup": 5' in text
    assert '"norm": "inf"' in text


def _as_toml(value):
    # JSON as TOML would give it: no null, infinity a number.
    if isinstance(value, dict):
        # Only `pairs` is null where the default is not: null is what "none" stands for.
        kept = {key: entry for key, entry in value.items() if entry is not None or key == "pairs"}
        return {key: "none" if entry is None else _as_toml(entry) for key, entry in kept.items()}
    if isinstance(value, list):
        return [_as_toml(entry) for entry in value]
    return math.inf if value == "inf" else value


def test_all_mistakes_of_a_file_are_told_at_once(problems):
    messages = problems(
        ("seeds = [0, 1]", "seeds = [0, 1.5]\ndevic = 'cpu'"),
        ('"t_blobs"', '"t_blob"'),
        ("epochs = 20", "epochs = 0"),
        ("steps = 3", "stepz = 3"),
        ("sigma = 1", "sigma = -1"),
        ("lambda = 1", "lamda = 1"),
        ("target_accuracy = 0.95", "target_accuracy = 95"),
        ('pairs = "none"', "pairs = 2.5"),
    )

    assert messages == [
        "benchmarks.toml:2: seeds must be a list of whole numbers, got [0, 1.5]",
        "benchmarks.toml:3: unknown key 'devic'; did you mean 'device'?",
        "benchmarks.toml:7: benchmark 'toy', dataset: data set 't_blob' is not installed; "
        "did you mean 't_blobs'? Installed: digits, fashion_mnist, half_max_abs, mnist, sine, "
        "step, t_blobs, t_curve",
        "benchmarks.toml:9: benchmark 'toy', training: epochs must be at least 1, got 0",
        "benchmarks.toml:10: benchmark 'toy', selection: unknown key 'stepz'; "
        "did you mean 'steps'?",
        "benchmarks.toml:14: benchmark 'toy', evaluation, noise 1: sigma must be at least 0 "
        "and finite, got -1.0",
        "benchmarks.toml:26: benchmark 'toy', method 2 (t_penalty): unknown key 'lamda'; "
        "did you mean 'lambda'?",
        "benchmarks.toml:27: benchmark 'toy', method 2 (t_penalty): target_accuracy must be a "
        "fraction between 0 and 1, got 95.0",
        "benchmarks.toml:35: benchmark 'toy', method 3 (t_penalty): pairs must be a whole number "
        'or "none", got 2.5',
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("schema = 1", "schema = 2", "schema must be 1, got 2"),
        ("schema = 1", 'device = "gpu"', "device must be 'auto' or 'cpu' or 'cuda', got 'gpu'"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "seeds must differ"),
        ("seeds = [0, 1]", "seeds = []", "seeds must list at least one"),
        ("seeds = [0, 1]", "seeds = [-1]", "seeds must be at least 0"),
        ("seeds = [0, 1]", "seeds = [true]", "seeds must be a list of whole numbers"),
        ('name = "toy"', 'name = "a/b"', "name must be usable as the name of a folder"),
        ('name = "toy"', "", "missing key 'name'"),
        ('model = "t_affine"', "", "missing key 'model'"),
        ('model = "t_affine"', "model = 3", "model must be a name or a table, got 3"),
        ('model = "t_affine"', "model = {}", "missing key 'name' of the model"),
        ('"t_affine"', '{ name = "t_affine", widths = [4, "5"] }', "must be a list of whole numb"),
        ("epochs = 20, ", "", "training: missing key 'epochs'"),
        ("batch_size = 16", 'batch_size = "16"', "batch_size must be a whole number, got '16'"),
        ("lr = 0.1", "lr = -0.1", "optimizer: lr must be positive, got -0.1"),
        ("epochs = 20", "epochs = true", "epochs must be a whole number, got true"),
        ('name = "sgd"', 'name = "sdg"', "name must be 'sgd' or 'adam', got 'sdg'"),
        ("epsilon = 2.0", "epsilon = -2.0", "epsilon must be finite and ≥ 0 pixel units"),
        ("steps = 3", "norm = 3", "norm must be 1, 2 or inf, got 3"),
        ("steps = 3", "norm = inf", "norm of attack 't_l2' must be 2, got inf"),
        ('attack = "t_l2", ', "", 'selection must be "last" or a table with an attack'),
        ("validation_size = 10", "validation_size = 0", "needs validation_size"),
        ("train_size = 100", "train_size = 0", "train_size must be at least 1, got 0"),
        ("train_size = 100", "classes = [1, 3]", "classes must be two or more of 0 to 2"),
        ("[0.05, 0.1]", "0.05", "epsilon must be a list of numbers, got 0.05"),
        ("[0.05, 0.1]", "[0.1, 0.1]", "epsilon must list distinct radii"),
        ("t_family:Two", "t_family:Tow", "did you mean 't_family:Two'?"),
        ('["t_upper"]', '["t_upper", "t_upper"]', "bound 2 (t_upper): is the same as bound 1"),
        ('["t_upper"]', '[{name = "t_upper", domain = [1, 0]}]', "domain must be a lower and"),
        ('["t_upper"]', '"t_upper"', "bound must be a list of tables"),
        ("clamp = true", "clamp = 1", "clamp must be true or false, got 1"),
        ("lambda = 1", "power = 3", "power must be 1 or 2, got 3"),
        ("lambda = 1", 'exact = "yes"', "exact must be true or false, got 'yes'"),
        ("lambda = 1", "name_of_layer = 1", "name_of_layer must be a string, got 1"),
        ("lambda = 1", "lambda = -1", "lambda must be at least 0, got -1.0"),
        (
            "lambda = 1",
            "lambda = inf",
            ":25: benchmark 'toy', method 2 (t_penalty): lambda must be finite, got inf",
        ),
        ("lambda = 1", "norm = 3", "norm must be 1, 2 or inf, got 3"),
        ("lambda = 1", "extra = { a = '1' }", 'extra must be a table or "none"'),
        ("lambda = 1", "path = [1]", "target_accuracy and path exclude each other"),
        ("path = [10, 1.0, 0.0]", "path = [-1]", "path must be at least 0.0 and finite, got -1.0"),
        ("step = 0.5 }", "step = 2 }", "discrepancy: step must be in (0, 1], got 2.0"),
        ("target_accuracy = 0.95", "", "discrepancy has no effect without target_accuracy"),
        ("epochs = 30", "epochs = 5", "needs epochs after the warm-up"),
        ('"t_plain"', '"t_plain"\ntarget_accuracy = 0.9', "needs a method with a strength"),
        ('"t_plain"', '"t_plain"\npath = [1]', "path needs a method with a strength"),
        ('"t_plain"', '"t_careless"\nweight = nan', "(t_careless): weight must be finite, got nan"),
        ('"t_plain"', '"t_careless"\nweight = -inf', "weight must be finite, got -inf"),
        ('"t_plain"', '"t_hiding"', "its field 'epochs' has the name of a key of lipbench"),
        ('"t_blobs"', '"t_curve"', "selection by an attack needs classes, but 't_curve' is a"),
        ('"t_blobs"', '"t_curve"', "target_accuracy needs classes, but 't_curve' is a"),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_was_expected(problems, old, new, problem):
    messages = problems((old, new))

    assert [message for message in messages if problem in message], messages
    assert all(message.startswith("benchmarks.toml:") for message in messages)


def test_a_benchmark_without_methods_is_a_mistake(toml):
    with pytest.raises(ConfigError, match=r"there is no \[\[benchmark.method\]\]"):
        read(toml(TEXT.partition("[[benchmark.method]]")[0]))


def test_a_file_without_benchmarks_is_a_mistake(toml):
    with pytest.raises(ConfigError, match=r"there is no \[\[benchmark\]\]"):
        read(toml("schema = 1\n"))


def test_the_same_method_twice_is_a_mistake_and_another_target_is_not(toml):
    again = '\n[[benchmark.method]]\nname = "t_plain"\n'

    assert read(toml(TEXT + again + "epochs = 21\n"))
    with pytest.raises(ConfigError, match=r"method 4 \(t_plain\): is the same as method 1"):
        read(toml(TEXT + again))


def test_two_benchmarks_of_one_name_are_a_mistake(toml):
    second = TEXT[TEXT.index("[[benchmark]]") :]
    with pytest.raises(ConfigError, match="benchmark 'toy' is there twice"):
        read(toml(TEXT + second))


def test_a_mistake_in_the_second_benchmark_has_its_own_line(toml):
    second = TEXT[TEXT.index("[[benchmark]]") :].replace("toy", "toy2").replace("1.0, 0.0", "nan")
    with pytest.raises(ConfigError) as caught:
        read(toml(TEXT + second))
    (problem,) = caught.value.problems
    assert "benchmarks.toml:64: benchmark 'toy2', method 3" in problem


def test_unreadable_toml_is_told_with_its_line(toml):
    with pytest.raises(ConfigError, match=r"benchmarks.toml:2: cannot be read as TOML"):
        read(toml("schema = 1\nseeds = [0,,1]\n"))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.toml: there is no such file"):
        read(tmp_path / "absent.toml")


def test_a_folder_or_another_encoding_is_told(tmp_path):
    (tmp_path / "latin.toml").write_bytes("name = 'é'".encode("latin-1"))

    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="is not a text in UTF-8"):
        read(tmp_path / "latin.toml")


def test_a_configuration_may_come_without_a_file(toml):
    assert parse(tomllib.loads(TEXT)) == read(toml(TEXT))
    with pytest.raises(ConfigError, match=r"^configuration: unknown key 'sed'"):
        parse(tomllib.loads(TEXT) | {"sed": 1})


INFINITE = [math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("group", names("lipbench.methods"))
def test_no_strength_of_a_method_is_infinite_or_no_number(group):
    family = load("lipbench.methods", group, Method)
    if family.strength is None:
        return
    name = group
    if is_family(family):
        name = f"{group}:{variants('lipbench.methods', group, family)[0]}"
    key = family.strength.field.rstrip("_")
    tables = tomllib.loads(TEXT)
    for value in INFINITE:
        tables["benchmark"][0]["method"] = [{"name": name, key: value}]
        if (name, value) == ("lcc", math.inf):  # a limit that limits nothing
            parse(tables)
            continue
        with pytest.raises(ConfigError) as caught:
            parse(tables)
        (problem,) = caught.value.problems
        assert f"method 1 ({name}): {key} must" in problem
        assert f"got {value}" in problem


def test_a_run_refuses_an_infinite_strength_before_it_begins(tmp_path):
    tables = tomllib.loads(TEXT)
    tables["benchmark"][0]["method"] = [{"name": "t_penalty", "lambda": math.inf}]
    with pytest.raises(ConfigError, match="lambda must be finite, got inf"):
        lipbench.run(tables, tmp_path / "run")
    assert not (tmp_path / "run").exists()


WRONG = st.sampled_from([None, True, 1, -1, 1.5, math.nan, "x", [], [1, "x"], {}, {"a": 1}])


@given(st.data())
def test_no_value_anywhere_ends_in_anything_but_a_configuration_or_its_problems(data):
    """Whatever stands in the place of a value, reading ends in a value or in a ConfigError."""
    tables = copy.deepcopy(tomllib.loads(TEXT))
    holder, key = data.draw(st.sampled_from(_leaves(tables)))
    holder[key] = data.draw(WRONG)
    with contextlib.suppress(ConfigError):
        parse(tables)


def _leaves(value):
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    leaves = []
    for key, entry in entries:
        leaves.append((value, key))
        if isinstance(entry, dict | list):
            leaves += _leaves(entry)
    return leaves
