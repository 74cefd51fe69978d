"""Folders of results that were tampered with: set aside and made anew, or named with exit 6."""

import random
import shutil

import pytest
from support import runs
from support.runs import cell_folders, config, results

from lipbench.cli.main import call
from lipbench.runs.exits import ExitCode
from lipbench.storage.rows import format_rows, read_rows

SETTINGS = config(
    "standard",
    "weight_regularization",
    seeds=(0, 1),
    evaluation={
        "test_size": 40,
        "attack": [{"name": "pgd", "norm": 2, "epsilon": [0.1, 0.5], "steps": 2, "starts": 1}],
        "bound": ["product", {"name": "jacobian", "points": 4}],
    },
)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genuine") / "run"
    assert runs.run(SETTINGS, folder) == 0
    return folder


@pytest.fixture
def folder(genuine, tmp_path):
    return shutil.copytree(genuine, tmp_path / "run")


def numbers(folder):
    """Return all values of results.csv, but those of time, by what they are of."""
    return {
        (
            r.method,
            r.seed,
            r.checkpoint,
            r.split,
            r.metric,
            r.norm,
            r.epsilon,
            r.estimator,
            r.side,
        ): (
            r.value,
            r.status,
        )
        for r in results(folder)
        if "seconds" not in r.metric
    }


def edited(folder, metric, change, **wanted):
    """Change the values of a metric in the rows of one cell, as an editor would."""
    cell = cell_folders(folder)["standard", 0]
    count = 0
    for path in sorted(cell.path.glob("rows-*.csv")):
        rows = read_rows(path)
        picked = [
            row
            for row in rows
            if row.metric == metric and all(getattr(row, k) == v for k, v in wanted.items())
        ]
        if picked:
            path.write_text(format_rows([change(row) if row in picked else row for row in rows]))
            count += len(picked)
    assert count


def valued(factor):
    def change(row):
        values = {name: getattr(row, name) for name in row.__dataclass_fields__}
        return type(row)(**values | {"value": row.value * factor})

    return change


def files(folder, pattern, method="standard", seed=0):
    return sorted(cell_folders(folder)[method, seed].path.glob(pattern))


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def swapped(folder, pattern):
    first, second = (files(folder, pattern, seed=seed)[0] for seed in (0, 1))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])


def nested(path):
    path.write_text('{"a": ' * 5000 + "1" + "}" * 5000)


TAMPERED = {
    "an upper bound below its lower one": lambda f: edited(
        f, "lipschitz", valued(1e-3), side="upper"
    ),
    "an upper bound lowered by 10 %": lambda f: edited(f, "lipschitz", valued(0.9), side="upper"),
    "a lower bound raised by a millionth": lambda f: edited(
        f, "lipschitz", valued(1 + 1e-6), side="lower"
    ),
    "an accuracy of 1.7": lambda f: edited(f, "test_accuracy", valued(1.7)),
    "an attack that broke less": lambda f: edited(f, "robust_accuracy", valued(1.05)),
    "rows of another seed": lambda f: swapped(f, "rows-*.csv"),
    "a flipped bit in a proof": lambda f: flip(files(f, "proof-*")[0]),
    "a flipped bit in outcomes": lambda f: flip(files(f, "samples-*")[0]),
    "deleted proofs": lambda f: [path.unlink() for path in files(f, "proof-*")],
    "deleted outcomes": lambda f: [path.unlink() for path in files(f, "samples-*")],
    "swapped models": lambda f: swapped(f, "model.safetensors"),
    "swapped proofs": lambda f: swapped(f, "proof-*"),
    "a deleted seal": lambda f: files(f, "seal-*")[0].unlink(),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_tampered_with_is_named_and_made_anew(name, genuine, folder, capsys):
    TAMPERED[name](folder)
    assert call(["status", str(folder)]) in (ExitCode.UNSOUND, ExitCode.DONE)
    shown = capsys.readouterr().out
    code = call(["table", str(folder)])
    assert "Traceback" not in shown + "".join(capsys.readouterr())
    if name not in ("swapped models", "a deleted seal"):
        assert code == ExitCode.UNSOUND
    assert runs.run(SETTINGS, folder) == 0
    assert numbers(folder) == numbers(genuine)
    assert call(["status", str(folder)]) == 0
    assert call(["table", str(folder)]) == 0


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("status.json", how) for how in ("nested", "list", "digits", "infinite", "null")),
        *(("cell.json", how) for how in ("nested", "empty")),
    ],
)
def test_strange_json_is_damaged_and_nothing_worse(name, how, genuine, folder, capsys):
    (path,) = files(folder, name)
    text = {
        "list": "[1, 2]",
        "empty": "",
        "digits": '{"attempt": ' + "9" * 10_000 + "}",
        "infinite": '{"state": "done", "seconds": 1e999}',
        "null": "\0\0\0",
    }
    nested(path) if how == "nested" else path.write_text(text[how])
    for verb in ("status", "table"):
        assert call([verb, str(folder)]) in (0, ExitCode.UNSOUND)
    assert "Error" not in "".join(capsys.readouterr())
    assert runs.run(SETTINGS, folder) == 0
    assert numbers(folder) == numbers(genuine)


def test_a_table_of_a_file_of_rows_that_cannot_be_true_is_refused(genuine, tmp_path, capsys):
    path = tmp_path / "results.csv"
    rows = read_rows(genuine / "results.csv")
    changed = [valued(1e-3)(r) if (r.metric, r.side) == ("lipschitz", "upper") else r for r in rows]
    path.write_text(format_rows(changed))
    assert call(["table", str(path)]) == ExitCode.UNSOUND
    assert "exceeds" in "".join(capsys.readouterr())
    path.write_text(format_rows(rows))
    assert call(["table", str(path)]) == 0


def tamper(rng, folder):
    """Return what was done to one file of the folder."""
    paths = sorted(path for path in folder.glob("cells/*/*/*/*") if path.name != "lock")
    path = rng.choice(
        [p for p in paths if p.is_file() and p.suffix in (".csv", ".json", ".safetensors")]
    )
    how = rng.choice(["flip", "cut", "delete", "swap", "number", "append", "empty", "folder"])
    data = path.read_bytes()
    if how == "flip" and data:
        place = rng.randrange(len(data))
        path.write_bytes(
            data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        )
    elif how == "cut":
        path.write_bytes(data[: rng.randrange(len(data) + 1)])
    elif how == "swap":
        other = rng.choice([p for p in paths if p.is_file() and p.suffix == path.suffix])
        path.write_bytes(other.read_bytes())
    elif how == "number":
        digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
        if digits:
            place = rng.choice(digits)
            path.write_bytes(data[:place] + bytes([48 + rng.randrange(10)]) + data[place + 1 :])
    elif how == "append":
        path.write_bytes(data + rng.randbytes(8))
    elif how == "empty":
        path.write_bytes(b"")
    elif how in ("delete", "folder"):
        path.unlink()
        if how == "folder":
            path.mkdir()
    return f"{how} {path.name}"


def trial(rng, genuine, place, anew):
    """Tamper with a copy: what is shown is genuine or named, and what is run anew is genuine."""
    folder = shutil.copytree(genuine, place)
    done = [tamper(rng, folder) for _ in range(rng.choice([1, 1, 2]))]
    codes = [call([verb, str(folder)]) for verb in ("status", "table")]
    assert set(codes) <= {0, 6, int(ExitCode.INTERNAL), int(ExitCode.USAGE)}, (done, codes)
    if anew:
        assert runs.run(SETTINGS, folder) in (0, int(ExitCode.FAILED)), done
        if runs.run(SETTINGS, folder) == 0:
            assert numbers(folder) == numbers(genuine), done
    shutil.rmtree(folder)


def test_nothing_done_to_files_is_shown_as_a_number(genuine, tmp_path, capsys):
    rng = random.Random(0)
    for number in range(6):
        trial(rng, genuine, tmp_path / f"run{number}", anew=True)
        assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_nothing_done_to_files_is_shown_as_a_number_often(genuine, tmp_path, capsys, seed):
    rng = random.Random(seed)
    for number in range(1000):
        trial(rng, genuine, tmp_path / f"run{number}", anew=number % 20 == 0)
        assert "Traceback" not in "".join(capsys.readouterr())
