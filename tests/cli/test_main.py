"""Verbs answer fast, mistakes get a message and an exit code and never a traceback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lipbench
from lipbench.cli.main import call
from lipbench.data.folder import folder as data_folder
from lipbench.runs.exits import ExitCode

DATASET = """
from dataclasses import dataclass
from typing import ClassVar
from lipbench.dataset import DataMissing, Dataset

@dataclass(frozen=True, kw_only=True)
class Files(Dataset):
    input_shape: ClassVar[tuple[int, ...]] = (1,)
    published_outputs: ClassVar[int] = 2

    @property
    def digest(self):
        return "x"

    def read(self, folder):
        raise NotImplementedError

    def missing(self, folder):
        path = folder / "numbers.bin"
        return () if path.exists() else (path,)

    def fetch(self, folder, progress):
        if not folder.parent.exists():
            raise DataMissing(f"{folder} cannot be made")
        progress("fetching numbers")
        folder.mkdir(exist_ok=True)
        (folder / "numbers.bin").write_bytes(b"1")
"""

CONFIG = """
[[benchmark]]
name = "small"
dataset = "digits"
model = "mlp"
training = { epochs = 1 }
[[benchmark.method]]
name = "standard"
"""


@pytest.fixture
def lip(capsys):
    """Return what the command line gives: exit code, standard output, standard error."""

    def run(*arguments):
        code = call([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "benchmarks.toml"
    path.write_text(CONFIG)
    return path


def python(text, **options):
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["status", "."], ["table", "nowhere"], ["data", "list"]],
)
def test_torch_is_not_imported_by(arguments):
    done = python(
        "import sys; from lipbench.cli.main import call\n"
        f"call({arguments!r}); sys.exit('torch' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_none_of_its_parts():
    done = python(
        "import sys, lipbench; print([m for m in sys.modules if m.startswith('lipbench.')])"
    )
    assert done.stdout.strip() == "[]"


def test_the_package_tells_its_names_and_refuses_others():
    assert {"attack", "bracket", "plan", "run", "run_cell", "run_cells"} <= set(dir(lipbench))
    with pytest.raises(AttributeError, match="no attribute 'brakcet'"):
        lipbench.brakcet  # noqa: B018


@pytest.mark.parametrize("verb", ["plan", "run", "status", "table", "ls", "data", "env", "audit"])
def test_every_verb_explains_itself(lip, verb):
    code, out, _ = lip(verb, "--help")

    assert code == 0
    assert out.startswith(f"Usage: lipbench {verb}")


def test_the_version_is_the_distributions(lip):
    assert lip("--version")[:2] == (0, "lipbench, version 0.1.0\n")


def test_a_misspelt_verb_is_bad_usage(lip):
    code, _, err = lip("tabel")

    assert code == ExitCode.USAGE
    assert "tabel" in err


def test_all_mistakes_of_a_configuration_are_printed(lip, config):
    config.write_text(CONFIG.replace("digits", "digit").replace("epochs = 1", "epochs = 0"))

    code, out, err = lip("run", config)
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith("lipbench: 2 problems in the configuration\n")
    assert "did you mean 'digits'?" in err
    assert "epochs must be at least 1, got 0" in err
    assert "Traceback" not in err
    assert not (config.parent / "results").exists()


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_a_missing_configuration_is_bad_usage(lip, tmp_path, verb):
    code, _, err = lip(verb, tmp_path / "absent.toml")

    assert code == ExitCode.USAGE
    assert "there is no such file" in err


@pytest.mark.parametrize(("options", "size"), [([], 2), (["--no-stack"], 1)])
def test_cells_are_trained_one_by_one_if_that_is_asked_for(lip, config, options, size):
    enough = 'epochs = 5, optimizer = { name = "adam", lr = 0.02 }'
    config.write_text("seeds = [0, 1]\n" + CONFIG.replace("epochs = 1", enough))

    code, out, _ = lip("plan", config, *options)
    assert code == 0
    assert f"2 cells in {2 // size} stacks" in out

    code, *_ = lip("run", config, "-q", "-o", config.parent / "run", *options)
    assert code == 0
    cells = list((config.parent / "run").glob("cells/*/*/*/cell.json"))
    assert [len(json.loads(cell.read_text())["stack"]) for cell in cells] == [size] * 2


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_selecting_nothing_has_its_own_code(lip, config, verb):
    code, _, err = lip(verb, config, "--only", "smal")

    assert code == ExitCode.NOTHING
    assert "nothing selected" in err
    assert "did you mean 'small'?" in err


def test_one_misspelt_name_among_others_is_bad_usage(lip, config):
    code, _, err = lip("plan", config, "--only", "small", "--only", "smal")

    assert code == ExitCode.USAGE
    assert "no benchmark 'smal'" in err


@pytest.mark.parametrize("verb", ["status", "table"])
def test_a_folder_that_is_no_run_is_bad_usage(lip, tmp_path, verb):
    for folder in (tmp_path, tmp_path / "absent"):
        code, _, err = lip(verb, folder)
        assert code == ExitCode.USAGE
        assert err.startswith("lipbench: ")
        assert str(folder) in err


def test_the_status_of_a_folder_of_runs_names_them(lip, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_text("{}")
    code, _, err = lip("status", tmp_path)
    assert code == ExitCode.USAGE
    assert f"Give one of its runs: {tmp_path / 'mine'}." in err
    (tmp_path / "results.csv").write_text("")
    assert "`lipbench table` shows" in lip("status", tmp_path)[2]


def test_an_unexpected_error_is_one_line_and_its_traceback_on_request(lip, monkeypatch):
    def fail():
        raise RuntimeError("boom")

    monkeypatch.setattr("lipbench.storage.environment.record", fail)

    code, _, err = lip("env")
    assert code == ExitCode.INTERNAL
    assert err.splitlines() == ["lipbench: RuntimeError: boom (-v shows where it happened)"]
    assert "Traceback" in lip("-v", "env")[2]
    assert "Traceback" in lip("env", "-v")[2]
    monkeypatch.setenv("LIPBENCH_LOG", "debug")
    assert "Traceback" in lip("env")[2]


def test_the_environment_is_json(lip):
    code, out, _ = lip("env")

    assert code == 0
    assert json.loads(out)["lipbench"] == "0.1.0"


@pytest.mark.parametrize(
    ("error", "expected"),
    [("KeyboardInterrupt()", 130), ("SystemExit(4)", 4), ("OSError('disk')", 1)],
)
def test_an_exception_becomes_an_exit_code(lip, monkeypatch, error, expected):
    def fail():
        raise eval(error)

    monkeypatch.setattr("lipbench.storage.environment.record", fail)
    assert lip("env")[0] == expected


def test_sigterm_exits_143():
    text = (
        "import os, signal, sys\n"
        "import lipbench.storage.environment as e\n"
        "e.record = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv = ['lipbench', 'env']\n"
        "from lipbench.cli.main import main; main()"
    )
    assert python(text).returncode == 128 + signal.SIGTERM


def test_a_reader_that_leaves_is_no_error():
    """As in `lipbench env | head -1`: what nobody reads is dropped, the work goes on."""
    reading, writing = os.pipe()
    os.close(reading)
    text = (
        "import lipbench.storage.environment as e, sys\n"
        "e.record = lambda: 'x' * 1000000\n"
        "sys.argv = ['lipbench', 'env']\n"
        "from lipbench.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def numbers(publish):
    publish(
        "files",
        {"lipbench.datasets": {"numbers": "numbers_set:Files"}},
        {"numbers_set.py": DATASET},
    )


def test_a_data_set_is_missing_until_it_is_fetched(lip, numbers, tmp_path, monkeypatch):
    monkeypatch.setenv("LIPBENCH_DATA", str(tmp_path / "data"))

    assert f"missing: {tmp_path / 'data' / 'numbers.bin'}" in lip("data", "list")[1]
    assert lip("data", "fetch", "numbers") == (0, "fetching numbers\n", "")
    lines = lip("data", "list")[1].splitlines()
    assert lines[0] == f"folder: {tmp_path / 'data'}"
    assert "present" in next(line for line in lines if line.startswith("numbers"))


def test_a_data_set_that_cannot_be_had_is_a_failure(lip, numbers, tmp_path, monkeypatch):
    monkeypatch.setenv("LIPBENCH_DATA", str(tmp_path / "no" / "such"))
    code, _, err = lip("data", "fetch", "numbers")

    assert code == ExitCode.FAILED
    assert err == f"lipbench: {tmp_path / 'no' / 'such'} cannot be made\n"


def test_a_misspelt_data_set_is_corrected(lip):
    code, _, err = lip("data", "fetch", "mnits")

    assert code == ExitCode.USAGE
    assert "did you mean 'mnist'?" in err


def test_a_broken_data_set_does_not_stop_the_list(publish, lip):
    publish("bad", {"lipbench.datasets": {"bad": "bad_set:Bad"}}, {"bad_set.py": "1 / 0"})
    code, out, _ = lip("data", "list")

    assert code == 0
    assert "digits" in out


def test_the_data_folder_is_the_users_cache_unless_it_is_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("LIPBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert data_folder() == Path("/somewhere/lipbench/data")

    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "lipbench" / "data"

    monkeypatch.setenv("LIPBENCH_DATA", "~/mine")
    assert data_folder() == Path.home() / "mine"
