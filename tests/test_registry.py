"""Plugins are found by name, and whatever is wrong with one is said by name."""

import pytest
from support.plugins import FAMILY, METHOD

from lipbench.adversary import Attack
from lipbench.method import Method
from lipbench.registry import PluginError, distribution, load, names, resolve


@pytest.fixture
def family(publish):
    publish("families", {"lipbench.attacks": {"family": "fam:Family"}}, {"fam.py": FAMILY})


def test_a_built_in_plugin_goes_through_the_same_door():
    assert load("lipbench.methods", "standard", Method).__module__ == "lipbench.methods.standard"
    assert distribution("lipbench.methods", "standard") == ("lipbench", "0.1.0")


def test_a_strangers_plugin_is_found(publish):
    publish("stranger", {"lipbench.methods": {"mine": "mine:Mine"}}, {"mine.py": METHOD}, "2.3")

    assert "mine" in names("lipbench.methods")
    assert load("lipbench.methods", "mine", Method).__name__ == "Mine"
    assert distribution("lipbench.methods", "mine") == ("stranger", "2.3")


def test_what_is_installed_or_removed_meanwhile_is_seen(publish):
    root = publish("first", {"lipbench.methods": {"mine": "mine:Mine"}}, {"mine.py": METHOD})
    assert "mine" in names("lipbench.methods")
    (root / "first-1.0.dist-info").rename(root / "first-1.0.removed")
    assert "mine" not in names("lipbench.methods")
    (root / "first-1.0.removed").rename(root / "first-1.0.dist-info")
    assert distribution("lipbench.methods", "mine") == ("first", "1.0")


def test_a_misspelt_name_is_corrected():
    with pytest.raises(PluginError, match=r"method 'standrad' .*did you mean 'standard'\?"):
        load("lipbench.methods", "standrad", Method)


def test_a_name_published_twice_is_refused_naming_both(publish):
    publish("other", {"lipbench.methods": {"standard": "other:Mine"}}, {"other.py": METHOD})

    with pytest.raises(PluginError, match=r"lipbench 0\.1\.0 .* and other 1\.0 \(other:Mine\)"):
        load("lipbench.methods", "standard", Method)


def test_a_class_of_another_kind_is_refused(publish):
    publish("wrong", {"lipbench.attacks": {"mine": "wrong:Mine"}}, {"wrong.py": METHOD})

    with pytest.raises(PluginError, match=r"wrong 1\.0 must be a subclass of Attack"):
        load("lipbench.attacks", "mine", Attack)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def (", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_module_is_named_with_its_reason(publish, text, reason):
    publish("broken", {"lipbench.methods": {"bad": "bad_module:Bad"}}, {"bad_module.py": text})
    publish("stranger", {"lipbench.methods": {"mine": "mine:Mine"}}, {"mine.py": METHOD})

    with pytest.raises(PluginError, match=rf"'bad' of broken 1\.0 is broken: {reason}"):
        load("lipbench.methods", "bad", Method)
    assert load("lipbench.methods", "mine", Method)


def test_a_variant_follows_the_colon(family):
    cls, fixed = resolve("lipbench.attacks", "family:Two", Attack)

    assert cls(**fixed).variant == "Two"
    assert distribution("lipbench.attacks", "family:Two") == ("families", "1.0")


def test_a_plugin_without_variants_fixes_no_field():
    assert resolve("lipbench.methods", "standard", Method)[1] == {}


@pytest.mark.parametrize("name", ["family:Twoo", "family"])
def test_an_unknown_variant_is_corrected(family, name):
    with pytest.raises(PluginError, match=r"did you mean 'family:(Two|One)'\?"):
        resolve("lipbench.attacks", name, Attack)


def test_a_variant_of_a_plugin_that_has_none_is_refused():
    with pytest.raises(PluginError, match="'standard' has no variants"):
        resolve("lipbench.methods", "standard:Fast", Method)
