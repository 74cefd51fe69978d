"""A digest changes with what may change a number, and with nothing else."""

import ast
import importlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipbench.planning.keys import digest, source_digest

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
