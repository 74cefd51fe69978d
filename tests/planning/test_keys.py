"""A digest changes with what may change a number, and with nothing else."""

import ast
import importlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipbench.planning.keys import _syntax, digest, source_digest

MODULE = '''"""A method."""
from dataclasses import dataclass

from . import helper


@dataclass
class Mine:
    """Of mine."""

    scale: float = 0.5
    """Of everything."""

    def act(self):
        return helper.double(self.scale)
'''
HELPER = "def double(x):\n    return 2 * x\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def syntax(text):
    return _syntax(text.encode())


@pytest.fixture
def digest_of(publish):
    """Return the digest of package `mine`, written with the given files."""
    count = iter(range(100))

    def compute(**files):
        # One name for all versions: only the texts may differ.
        for module in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
            del sys.modules[module]
        texts = {"__init__": "", "method": MODULE, "helper": HELPER} | files
        publish(f"dist{next(count)}", {}, {f"mine/{name}.py": text for name, text in texts.items()})
        return source_digest(importlib.import_module("mine.method").Mine)

    return compute


@pytest.mark.parametrize(
    "edited",
    [
        MODULE.replace('"""A method."""', '"""Another text."""  # and a comment'),
        MODULE.replace('    """Of everything."""\n', ""),
        MODULE.replace('    """Of mine."""\n', "    # Of mine.\n"),
        MODULE.replace("helper.double(self.scale)", "(\n    helper . double( self.scale ))"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(digest_of, edited):
    assert digest_of() == digest_of(method=edited)


@pytest.mark.parametrize(
    ("old", "new"),
    [("0.5", "0.25"), ("scale: float = 0.5", "scale: float = False"), ("double(", "half(")],
)
def test_code_counts(digest_of, old, new):
    assert digest_of() != digest_of(method=MODULE.replace(old, new))


def test_constants_that_compare_equal_are_told_apart(digest_of):
    assert len({digest_of(helper=f"X = {value}\n") for value in ("0", "0.0", "False", "''")}) == 4


@pytest.mark.parametrize(
    "statement",
    ["from . import helper", "from mine import helper", "import mine.helper as helper"],
)
def test_an_edited_helper_module_counts(digest_of, statement):
    method = MODULE.replace("from . import helper", statement)

    assert digest_of(method=method) != digest_of(
        method=method, helper=HELPER.replace("2 * x", "3 * x")
    )


def test_helpers_of_helpers_count(digest_of):
    helper = "def double(x):\n    from mine.deep import two\n    return two * x\n"

    first = digest_of(helper=helper, deep="two = 2\n")
    assert first != digest_of(helper=helper, deep="two = 3\n")


def test_a_module_that_is_not_imported_does_not_count(digest_of):
    assert digest_of(other="x = 1\n") == digest_of(other="x = 2\n")


def test_modules_side_by_side_belong_to_one_distribution(publish):
    """A distribution may consist of single files without a package around them."""
    digests = []
    for factor in (2, 3):
        for module in ("flat_plugin", "flat_helper"):
            sys.modules.pop(module, None)
        publish(
            f"flat{factor}",
            {},
            {
                "flat_plugin.py": "from flat_helper import f\nclass Mine:\n    pass\n",
                "flat_helper.py": f"f = {factor}\n",
            },
        )
        digests.append(source_digest(importlib.import_module("flat_plugin").Mine))

    assert digests[0] != digests[1]


def test_other_distributions_and_the_core_do_not_count(publish):
    """Only the plugin's own code is in its digest: the core has a protocol number."""
    text = "import json\nimport numpy\nimport lipbench.norm\nclass Mine:\n    pass\n"
    publish("importing", {}, {"importing_plugin.py": text})
    bare = text.replace("import json\nimport numpy\nimport lipbench.norm\n", "")

    from lipbench.planning.keys import _modules

    importlib.import_module("importing_plugin")
    assert set(_modules("importing_plugin")) == {"importing_plugin"}
    assert ast.parse(bare)


CORE = """
from lipbench.layers.orthogonal import polar
from lipbench.networks import steps
from lipbench.networks.net import Net
import lipbench.norm as norms
"""


def with_imports(text):
    return text + MODULE.partition('"""A method."""\n')[2]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lipbench.networks.net", "lipbench.data"),
        ("lipbench.networks.net", "lipbench"),
        ("lipbench.norm", "lipbench.layers.norm"),
        ("from lipbench.networks import steps\n", "from lipbench.zoo import steps\n"),
        # A formatter puts them in another order, and joins what comes from one module.
        (
            "from lipbench.layers.orthogonal import polar\nfrom lipbench.networks import steps\n",
            "from lipbench.networks import steps\nfrom lipbench.zoo.orthogonal import polar\n",
        ),
        (
            "from lipbench.networks import steps\nfrom lipbench.networks.net import Net\n",
            "from lipbench.networks import Net, steps\n",
        ),
    ],
)
def test_where_the_core_keeps_a_name_does_not_count(old, new):
    assert old in CORE
    moved = with_imports(CORE.replace(old, new))
    assert syntax(with_imports(CORE)) == syntax(moved)
    assert syntax(with_imports(CORE)) != syntax(with_imports(""))


def test_a_digest_does_not_hold_the_paths_of_the_core(digest_of):
    first = digest_of(method="from lipbench.norm import Norm\n" + MODULE)
    assert first == digest_of(method="from lipbench import Norm\n" + MODULE)
    assert first != digest_of(method="from lipbench import Norm as Length\n" + MODULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import polar", "import cayley"),
        ("import polar", "import polar as steps_of"),
        ("import polar", "import *"),
        ("import polar", "import cayley as polar"),
        ("import steps", "import primitives as steps"),
        ("as norms", "as lengths"),
        ("import Net\n", "import Net, State\n"),
        ("from lipbench.networks.net import Net\n", ""),
        # Plugins are nobody's core: their own modules, and those of others.
        ("from lipbench.networks.net", "from lipbench.bounds.net"),
        ("from lipbench.networks.net", "from lipbench.bounds"),
        ("from lipbench.networks.net", "from networks.net"),
        ("from lipbench.networks.net", "from lipbench_more.net"),
        ("from lipbench.networks.net", "from .net"),
    ],
)
def test_what_a_name_is_counts(old, new):
    assert old in CORE
    assert syntax(with_imports(CORE)) != syntax(with_imports(CORE.replace(old, new)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from lipbench.x import a as step", "from lipbench.x import b as step"),
        ("from lipbench.x import *", "from lipbench.y import *"),
        ("from lipbench.bounds.x import a", "from lipbench.bounds.y import a"),
        ("from lipbench.methods.x import a", "from lipbench.methods.y import a"),
        ("from mine.x import a", "from mine.y import a"),
        ("import lipbench.x as a", "from lipbench import a"),
        # Where a name is bound twice, the last one is what counts.
        (
            "from lipbench.x import a\nfrom mine import a",
            "from mine import a\nfrom lipbench.x import a",
        ),
        ("from lipbench.x import a, b as a", "from lipbench.x import b as a, a"),
        # An import behind other code is not the same as one before it.
        ("from lipbench.x import a\na()", "a()\nfrom lipbench.x import a"),
    ],
)
def test_imports_that_make_two_programs(one, other):
    assert syntax(one) != syntax(other)


def test_imports_in_functions_are_read_alike():
    text = "def f():\n    from lipbench.{} import a\n    return a\n"
    assert syntax(text.format("x")) == syntax(text.format("y"))


@pytest.mark.parametrize(
    ("base", "counts"),
    [("", True), ("Base.__module__ = 'lipbench.norm'\n", False)],
    ids=["own", "of the core"],
)
def test_a_default_that_code_computes_counts_as_a_value(publish, monkeypatch, base, counts):
    """Of the core it does not: there it has a protocol number."""
    text = (
        "import os\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Base:\n    x: float\n    scale: float = float(os.environ['SCALE'])\n\n\n"
        f"{base}@dataclass\nclass Mine(Base):\n    y: int = 1\n"
    )
    digests = []
    for number, scale in enumerate(("0.5", "0.5", "0.25")):
        monkeypatch.setenv("SCALE", scale)
        sys.modules.pop("computing", None)
        publish(f"computing{number}", {}, {"computing.py": text})
        digests.append(source_digest(importlib.import_module("computing").Mine))
    assert digests[0] == digests[1]
    assert (digests[0] != digests[2]) == counts


def test_a_class_without_a_file_is_refused():
    homeless = type("Homeless", (), {"__module__": "nowhere_at_all"})

    with pytest.raises(ValueError, match="Homeless of module 'nowhere_at_all' has no source file"):
        source_digest(homeless)


@given(json_values)
def test_a_digest_has_twelve_digits_and_is_stable(value):
    assert digest(value) == digest(value)
    assert len(digest(value)) == 12


def test_the_order_of_keys_does_not_count():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest([1, 2]) != digest([2, 1])


def test_infinity_has_a_digest():
    assert digest(float("inf")) == digest("inf") != digest(float("-inf"))
