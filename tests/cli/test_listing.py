"""`ls` shows what is installed, and survives whatever is broken."""

import json

import pytest
from support.plugins import FAMILY, METHOD

from lipbench.cli.listing import listing, priced, text
from lipbench.cli.main import call


@pytest.fixture
def ls(capsys):
    def run(kind):
        assert call(["ls", kind, "--json"]) == 0
        return {plugin["name"]: plugin for plugin in json.loads(capsys.readouterr().out)}

    return run


def test_a_strangers_method_is_listed_beside_the_built_in_ones(publish, ls):
    documented = METHOD.replace("class Mine(Method):", 'class Mine(Method):\n    """Do it."""\n')
    publish("stranger", {"lipbench.methods": {"mine": "mine:Mine"}}, {"mine.py": documented}, "2.3")

    plugins = ls("methods")
    assert {"clip", "standard", "mine"} <= set(plugins)
    assert plugins["mine"] == {
        "name": "mine",
        "distribution": "stranger",
        "version": "2.3",
        "summary": "Do it.",
        "broken": None,
    }


def test_a_plugin_without_a_docstring_has_no_summary(publish, ls):
    publish("stranger", {"lipbench.methods": {"mine": "mine:Mine"}}, {"mine.py": METHOD})
    assert ls("methods")["mine"]["summary"] == ""


def test_a_broken_plugin_is_listed_with_the_reason(publish, ls):
    publish("broken", {"lipbench.methods": {"bad": "bad:Bad"}}, {"bad.py": "import nowhere_zz"})

    plugins = ls("methods")
    assert "No module named 'nowhere_zz'" in plugins["bad"]["broken"]
    assert "clip" in plugins


def test_a_name_published_twice_is_broken_in_both_distributions(publish):
    publish("other", {"lipbench.methods": {"standard": "other:Mine"}}, {"other.py": METHOD})

    twins = [plugin for plugin in listing("methods") if plugin.name == "standard"]
    assert [plugin.distribution for plugin in twins] == ["lipbench", "other"]
    assert all("uninstall all but one" in plugin.broken for plugin in twins)


def test_a_family_is_listed_by_its_variants(publish, ls):
    publish("families", {"lipbench.attacks": {"family": "fam:Family"}}, {"fam.py": FAMILY})
    assert {"family:One", "family:Two"} <= set(ls("attacks"))


def test_a_family_whose_extra_is_missing_is_broken_with_the_way_out(publish, ls):
    text = FAMILY.replace(
        'return ("One", "Two")', "raise ModuleNotFoundError('run pip install it')"
    )
    publish("families", {"lipbench.attacks": {"family": "fam:Family"}}, {"fam.py": text})

    assert "run pip install it" in ls("attacks")["family"]["broken"]


def test_a_terminal_gets_a_table(publish, capsys):
    publish("broken", {"lipbench.models": {"bad": "bad:Bad"}}, {"bad.py": "import nowhere_zz"})

    assert call(["ls", "models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "distribution", "version"]
    assert [line for line in lines if line.startswith("bad") and "BROKEN" in line]


@pytest.mark.parametrize("kind", ["methods", "attacks", "bounds", "datasets", "models"])
def test_no_built_in_plugin_is_broken(kind):
    built_in = [plugin for plugin in listing(kind) if plugin.distribution == "lipbench"]

    assert built_in
    optional = [plugin for plugin in built_in if plugin.broken and "pip install" in plugin.broken]
    assert [plugin for plugin in built_in if plugin.broken and plugin not in optional] == []
    assert all(plugin.summary for plugin in built_in if not plugin.broken)


def test_the_cost_of_a_step_is_measured_for_every_method(publish, capsys):
    twice = METHOD.replace("def loss(", "replays = 2\n\n    def loss(")
    unwilling = METHOD.replace(
        "def loss(", "def refuses(self, model, data):\n        return 'not I'\n\n    def loss("
    )
    for name, code in (("twice", twice), ("unwilling", unwilling)):
        publish(name, {"lipbench.methods": {name: f"{name}:Mine"}}, {f"{name}.py": code})
    plugins = [
        plugin for plugin in listing("methods") if plugin.name in ("standard", "twice", "unwilling")
    ]

    plugins = priced(plugins)
    standard, twice, unwilling = (plugin.cost for plugin in plugins)
    assert 0 < standard.lowest <= standard.ratio <= standard.highest
    assert 0 < twice.lowest <= twice.ratio <= twice.highest
    assert unwilling.ratio is None
    shown = text(plugins)
    assert "cost per step" in shown
    assert "not measured: it refuses: not I." in shown


def test_only_methods_have_a_cost_per_step(capsys):
    assert call(["ls", "bounds", "--cost"]) == 2
    assert "--cost is for methods" in capsys.readouterr().err
