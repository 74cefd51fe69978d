"""What is in the folders is what is installed."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "methods": ROOT / "methods",
    "attacks": ROOT / "attacks",
    "bounds": ROOT / "lipbench" / "bounds",
    "certificates": ROOT / "lipbench" / "certificates",
    "datasets": ROOT / "lipbench" / "datasets",
    "models": ROOT / "lipbench" / "models",
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_file_is_published_under_one_name(kind):
    """Each file of a plugin folder has its line in pyproject.toml, and each line its file."""
    published = PROJECT["project"]["entry-points"][f"lipbench.{kind}"].values()
    modules = [value.partition(":")[0].removeprefix(f"lipbench.{kind}.") for value in published]

    assert sorted(modules) == sorted(path.stem for path in FOLDERS[kind].glob("[!_]*.py"))


def test_every_package_is_installed():
    """A package that is not listed is silently missing from the wheel."""
    inside = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "lipbench").rglob("__init__.py")
    }
    settings = PROJECT["tool"]["setuptools"]
    assert set(settings["packages"]) == inside | {"lipbench.methods", "lipbench.attacks"}
    assert settings["package-dir"]["lipbench.methods"] == "methods"
    assert settings["package-dir"]["lipbench.attacks"] == "attacks"


def test_every_template_is_installed():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    listed = {
        path
        for package, names in patterns.items()
        for name in names
        for path in ROOT.joinpath(*package.split(".")).glob(name)
    }
    files = {path for path in (ROOT / "lipbench").rglob("*") if path.is_file()}
    assert listed == {path for path in files if path.suffix not in (".py", ".pyc")}


def test_installed_entry_points_are_those_of_the_project():
    """The metadata of an editable installation goes stale when pyproject.toml gains a plugin."""
    from importlib.metadata import entry_points

    for kind in FOLDERS:
        group = f"lipbench.{kind}"
        installed = {
            one.name: one.value
            for one in entry_points(group=group)
            if one.dist and one.dist.name == "lipbench"
        }
        assert installed == PROJECT["project"]["entry-points"][group], "pip install -e . again"
