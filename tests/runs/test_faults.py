"""Runs that are killed, stopped, lied to or damaged end well, or say what is wrong."""

import shutil
import signal
from pathlib import Path

import pytest
from support import runs
from support.runs import DRIVEN, cell_folders, config, evaluation, job, processes, results, states

import lipbench
from lipbench.cli.main import call
from lipbench.runs.exits import ExitCode
from lipbench.tables.table import blocks, table_text
from lipbench.training.optimiser import Optimizer

BOTH = config(DRIVEN, seeds=(0, 1))

METHOD = """
import os, sys
from dataclasses import dataclass
from typing import ClassVar
import torch
from lipbench.method import Claim, Method
from lipbench.norm import Norm

class Careless(Claim):
    def __post_init__(self):
        pass

@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    at: str = ""

    def build(self, model, input_shape, rng):
        self.fail("build")
        return model

    def start(self, net, data, rng):
        self.fail("start")
        return {"step": torch.zeros(())}

    def loss(self, net, batch, state, draw, h):
        step = int(state["step"]) + 1
        if step == 3:
            self.fail("step 3")
        outputs, buffers = net.train(batch.inputs)
        loss = batch.loss(outputs)
        if self.at == "nan":
            loss = loss * float("nan")
        return loss, {**state, "step": state["step"] + 1, "buffers": buffers}

    def end_epoch(self, net, summary, state, h):
        self.fail("epoch 2" if summary.epoch == 2 else "epoch")
        return state

    def claims(self, net):
        if self.at == "claim raises":
            raise RuntimeError("boom in claims")
        if self.at == "claim of text":
            return "at most 1"
        if self.at == "claim of nan":
            return Claim(norm=Norm(2.0), constant=float("nan"))
        if self.at == "claim of much":
            return Claim(norm=Norm(2.0), constant=1.0, tolerance=1e9)
        if self.at == "unread claim":
            return Careless(norm=Norm(2.0), constant=float("inf"))
        if self.at == "claim":
            return Claim(norm=Norm(2.0), constant=0.01, domain=(0.0, 1.0), tolerance=1e-7)

    def effective(self, net, state, h):
        is_late = self.at == "late" and state["step"] > 8
        return self.finish(net, state, None, h) if is_late else net.params

    def finish(self, net, state, data, h):
        self.fail("finish")
        if self.at != "constant" and not (self.at == "late" and state["step"] > 8):
            return net.params
        return {name: torch.zeros_like(value) for name, value in net.params.items()}

    def fail(self, method):
        if self.at == method:
            raise RuntimeError(f"boom in {method}")
        if self.at == f"exit in {method}":
            sys.exit(0)

@dataclass(frozen=True, kw_only=True)
class Brittle(Method):
    stackable: ClassVar[bool] = True
    size: float = 0.0

    def loss(self, net, batch, state, draw, h):
        outputs, buffers = net.train(batch.inputs)
        return batch.loss(outputs), {**state, "buffers": buffers}

    def finish(self, net, state, data, h):
        if h["size"] > 1:
            raise RuntimeError("too large")
        return net.params
"""

ATTACK = """
from dataclasses import dataclass
from typing import ClassVar
from lipbench.adversary import Attack
from lipbench.norm import Norm

@dataclass(frozen=True, kw_only=True)
class Liar(Attack):
    how: str = "shape"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})

    def propose(self, model, inputs, labels, threat, rng):
        if self.how == "shape":
            return inputs[:1]
        if self.how == "nan":
            return inputs * float("nan")
        if self.how == "in place":
            inputs.add_(1)
        if self.how == "far away":
            return inputs + 100
        if self.how == "raises":
            raise RuntimeError("boom in the attack")
        return inputs
"""

BOUND = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from lipbench.bound import Bound, Lipschitz
from lipbench.norm import Norm

@dataclass(frozen=True, kw_only=True)
class Liar(Bound):
    how: str = "too small"
    side: ClassVar = "upper"
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})

    def cost(self, network, norm, domain):
        return 0.0

    def compute(self, network, norm, domain, known=(), inputs=None):
        if self.how == "raises":
            raise RuntimeError("boom in the bound")
        said = {"value": 1e-6, "side": "upper", "norm": norm, "domain": domain}
        if self.how == "nan":
            said["value"] = float("nan")
        if self.how == "infinite":
            said["value"] = float("inf")
        if self.how == "loose":
            said["value"] = 1e6
        if self.how == "none":
            return None
        if self.how == "listed proof":
            said["proof"] = [torch.zeros(1)]
        if self.how == "strange proof":
            return Lipschitz(**said, proof={"multipliers": torch.zeros(7).double()})
        if self.how == "elsewhere":
            said |= {"value": 1e6, "domain": (0.0, 1.0)}
        if self.how == "in another norm":
            said |= {"value": 1e6, "norm": Norm(1.0)}
        if self.how == "false witness":
            shape = network.input_shape
            proof = {"u": torch.zeros(shape).double(), "v": torch.ones(shape).double()}
            return Lipschitz(**said | {"value": 1e6, "side": "lower", "proof": proof})
        flags = () if self.how == "no proof" else ("unverified",)
        return Lipschitz(**said, flags=flags)
"""

CERTIFICATE = """
from dataclasses import dataclass
from typing import ClassVar
import torch
from lipbench.certificate import Certificate
from lipbench.norm import Norm
from lipbench.refused import Refused

@dataclass(frozen=True, kw_only=True)
class Liar(Certificate):
    how: str = ""
    norms: ClassVar[frozenset[Norm]] = frozenset({Norm(2.0)})

    def refuses(self, network, norm):
        if self.how == "mute":
            return 7
        if self.how == "modest":
            raise Refused("not this one")
        if self.how == "silent":
            raise Refused("")

    def radius(self, network, norm, inputs, labels, epsilons):
        found = torch.full((len(inputs),), -1.0)
        if self.how == "all":
            return found + 2.0
        if self.how in ("bold", "meek"):
            right = network(inputs.double()).argmax(dim=1) == labels
            return torch.where(right, 9.0 if self.how == "bold" else 1e-300, -1.0)
        if self.how == "one":
            return found[:1]
        if self.how == "nan":
            return found * float("nan")
        return {"list": found.tolist(), "none": None, "whole": found.long()}.get(self.how, found)
"""

DATASET = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from lipbench.dataset import DataMissing, Dataset, Raw

@dataclass(frozen=True, kw_only=True)
class Points(Dataset):
    input_shape: ClassVar[tuple[int, ...]] = (1, 2, 2)
    published_outputs: ClassVar[int] = 2
    digest = "points"

    def missing(self, folder):
        path = folder / "points.bin"
        return () if path.exists() else (path,)

    def read(self, folder):
        if self.missing(folder):
            raise DataMissing(f"{folder / 'points.bin'} is missing: put it there")
        rng = np.random.default_rng(0)
        labels = np.arange(200) % 2
        inputs = 0.4 * rng.random((200, 1, 2, 2), dtype=np.float32)
        inputs += 0.6 * labels[:, None, None, None].astype(np.float32)
        return Raw(train_inputs=inputs[:160], train_targets=labels[:160],
                   test_inputs=inputs[160:], test_targets=labels[160:])
"""


@pytest.fixture
def plugins(publish):
    publish(
        "faults",
        {
            "lipbench.methods": {
                "faulty": "fault_method:Faulty",
                "brittle": "fault_method:Brittle",
            },
            "lipbench.attacks": {"liar": "fault_attack:Liar"},
            "lipbench.bounds": {"liar": "fault_bound:Liar"},
            "lipbench.certificates": {"liar": "fault_certificate:Liar"},
            "lipbench.datasets": {"points": "fault_data:Points"},
        },
        {
            "fault_method.py": METHOD,
            "fault_attack.py": ATTACK,
            "fault_bound.py": BOUND,
            "fault_certificate.py": CERTIFICATE,
            "fault_data.py": DATASET,
        },
    )


def assert_is_as_if_nothing_had_happened(folder, finished):
    assert runs.numbers(folder) == runs.numbers(finished)
    assert runs.networks(folder) == runs.networks(finished)
    assert set(states(folder).values()) == {"done"}
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name.startswith(".tmp") or name.startswith("last.")]


# ------------------------------------------------------------------- killed and stopped

# A hit is (function, signal, number of the call, after it): a step of the optimiser, of which an
# epoch has eight, or the rename that ends the write of a file. SIGKILL before it leaves the
# temporary file.
KILLED = {
    "writing the configuration": ("replace", "KILL", 3, False),
    "in the first epoch": ("step", "KILL", 3, False),
    "in the second epoch": ("step", "KILL", 11, False),
    "writing the state of training": ("replace", "KILL", 9, False),
    "with one of two networks saved": ("replace", "KILL", 15, True),
    "with all networks saved": ("replace", "KILL", 18, True),
    "in the evaluation": ("replace", "KILL", 26, False),
}
STOPPED = {
    "interrupted in training": ("step", "INT", 11, False),
    "terminated in training": ("step", "TERM", 11, False),
    "interrupted in the evaluation": ("replace", "INT", 26, True),
    "terminated in the evaluation": ("replace", "TERM", 26, True),
}
FOUR = config("standard", "weight_regularization", "clip", "spectral_norm")


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory):
    # All processes that end badly, at once: to import torch takes longer than all they do.
    root = tmp_path_factory.mktemp("aftermath")
    hits = KILLED | STOPPED
    jobs = [[job(BOTH, root / name, hit)] for name, hit in hits.items()]
    shared = [job(FOUR, root / "shared"), job(FOUR, root / "shared")]
    codes, output = processes(*jobs, shared)
    names = [*hits, "shared"]
    return root, dict(zip(names, codes, strict=True)), dict(zip(names, output, strict=True))


@pytest.fixture
def left(aftermath, tmp_path):
    """Return exit codes, output, and a copy of the folder that a process left behind."""

    def copy(name):
        root, codes, output = aftermath
        return codes[name], output[name], Path(shutil.copytree(root / name, tmp_path / name))

    return copy


@pytest.mark.parametrize("when", KILLED)
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bits(left, finished, when):
    codes, output, folder = left(when)

    assert codes == [-signal.SIGKILL], output
    assert runs.run(BOTH, folder) == 0
    assert_is_as_if_nothing_had_happened(folder, finished)


@pytest.mark.parametrize("when", STOPPED)
def test_a_run_that_was_stopped_has_the_code_of_its_signal_and_goes_on(left, finished, when):
    codes, output, folder = left(when)

    code, word = (130, "interrupted") if "interrupted" in when else (143, "terminated")
    assert codes == [code], output
    assert f"{word} -> exit {code}" in output
    assert "killed" in states(folder).values()
    assert (folder / "results.csv").exists()
    assert runs.run(BOTH, folder) == 0
    assert_is_as_if_nothing_had_happened(folder, finished)


@pytest.mark.slow
def test_a_run_may_be_killed_at_every_write_and_many_steps(finished, tmp_path):
    hits = [("step", "KILL", n, False) for n in range(1, 17, 3)]
    hits += [("replace", "KILL", n, after) for n in range(1, 44) for after in (False, True)]
    folders = [tmp_path / str(number) for number in range(len(hits))]
    jobs = zip(folders, hits, strict=True)
    codes, _ = processes(*([job(BOTH, folder, hit)] for folder, hit in jobs))

    # The last writes may be past the end of the run.
    assert codes.count([-signal.SIGKILL]) >= len(hits) - 10
    for folder in folders:
        assert runs.run(BOTH, folder) == 0
        assert_is_as_if_nothing_had_happened(folder, finished)


def test_a_resumed_run_trains_only_the_epochs_that_are_missing(left, monkeypatch):
    _, _, folder = left("in the second epoch")
    steps = []
    step = Optimizer.step
    monkeypatch.setattr(Optimizer, "step", lambda *a: (steps.append(1), step(*a))[1])

    assert runs.run(BOTH, folder) == 0
    assert len(steps) == 8


def test_a_resumed_run_says_what_it_takes_up_again(left, capsys):
    _, _, folder = left("in the second epoch")

    assert runs.run(BOTH, folder, progress="auto") == 0
    out = capsys.readouterr().out
    assert "tiny clip 0.4 seed 0 is taken up again: its process died\n" in out


def test_two_runs_share_a_folder_and_do_nothing_twice(left):
    codes, output, folder = left("shared")

    assert set(codes) <= {0, 4}, output
    assert 0 in codes
    assert set(states(folder).values()) == {"done"}
    attempts = {cell_folder.read_status().attempt for cell_folder in cell_folders(folder).values()}
    assert attempts == {1}
    assert sum(output.count(f" {name} seed 0 done") for name, _ in states(folder)) == 4
    before = runs.files(folder)
    assert runs.run(FOUR, folder) == 0
    assert runs.files(folder) == before


# ----------------------------------------------------------------------- damaged files


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def replace_by_a_page(path):
    path.write_text("<html>404</html>")


DAMAGES = [flip, cut, replace_by_a_page]


@pytest.mark.parametrize("damage", [cut, replace_by_a_page])
@pytest.mark.parametrize("kind", ["rows", "samples", "proof"])
def test_a_damaged_file_of_an_evaluation_is_measured_again(folder, finished, damage, kind):
    networks = runs.networks(folder)
    damage(sorted(cell_folders(folder)["clip", 1].path.glob(f"{kind}-*"))[0])

    assert runs.run(BOTH, folder) == 0
    assert runs.networks(folder) == networks
    assert_is_as_if_nothing_had_happened(folder, finished)
    assert len(list(folder.rglob(f"{kind}-*.corrupt-1"))) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_network_is_trained_again_when_it_is_needed(folder, damage, capsys):
    """It is not needed as long as nothing is to be measured: the numbers stay what they are."""
    before = runs.networks(folder)
    damage(cell_folders(folder)["clip", 1].model)
    more = config(DRIVEN, seeds=(0, 1), **evaluation(noise=[{"sigma": 0.1, "clamp": True}]))

    assert runs.run(more, folder, progress="auto") == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out
    assert "clip 0.4 seed 1 is trained again" in out
    assert runs.networks(folder) == before
    assert [cell_folder.read_status().attempt for cell_folder in cell_folders(folder).values()] == [
        1,
        2,
    ]


def test_a_damaged_status_is_set_aside_and_its_cell_done_again(folder, finished, capsys):
    status = cell_folders(folder)["clip", 1].status_file
    cut(status)

    assert runs.run(BOTH, folder, progress="auto") == 0
    assert "status.json is damaged" in capsys.readouterr().out
    assert status.with_name("status.json.corrupt-1").exists()
    assert_is_as_if_nothing_had_happened(folder, finished)


def test_a_damaged_training_state_means_training_from_the_beginning(left, finished, capsys):
    _, _, folder = left("in the second epoch")
    (last,) = folder.rglob("last.safetensors")
    flip(last)

    assert runs.run(BOTH, folder, progress="auto") == 0
    assert f"{last} is damaged" in capsys.readouterr().out
    assert_is_as_if_nothing_had_happened(folder, finished)


def test_a_pickle_is_never_opened(folder, tmp_path):
    """A checkpoint that would run code when unpickled is only a damaged file."""
    bomb = b"cos\nsystem\n(S'touch %s'\ntR." % str(tmp_path / "ran").encode()
    cell_folders(folder)["clip", 0].model.write_bytes(bomb)
    more = config(DRIVEN, seeds=(0, 1), **evaluation(noise=[{"sigma": 0.1, "clamp": True}]))

    assert runs.run(more, folder) == 0
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------ faulty plugins


AT = ["build", "start", "step 3", "epoch 2", "finish", "exit in step 3", "exit in finish"]


def test_a_method_that_raises_fails_alone(plugins, tmp_path, capsys):
    folder = tmp_path / "run"
    methods = [{"name": "faulty", "at": at} for at in AT]
    settings = config(*methods, "standard", {"name": "faulty"})

    assert runs.run(settings, folder, progress="auto") == ExitCode.FAILED
    out = capsys.readouterr().out
    assert "lipbench: 2 done, 7 failed -> exit 3" in out
    assert list(states(folder).values()) == ["failed"] * 7 + ["done"] * 2
    for number, at in enumerate(AT):
        cell_folder = cell_folders(folder)[number]
        log = cell_folder.log.read_text()
        assert "Traceback" in log
        assert "fault_method.py" in log
        if "exit" not in at:
            status = cell_folder.read_status()
            assert (status.exception, status.message) == ("RuntimeError", f"boom in {at}")
            assert f"failed: RuntimeError: boom in {at}" in out


def test_a_failed_cell_is_a_row_without_a_number_and_a_share_in_the_table(plugins, tmp_path):
    """Seeds 0 and 1 are done, and then the method breaks."""
    folder = tmp_path / "run"
    entry = {"name": "faulty", "at": ""}
    assert runs.run(config(entry, "standard", seeds=(0, 1)), folder) == 0
    cell_folder = cell_folders(folder)["faulty", 1]
    cell_folder.write_status(
        lipbench.storage.cell_folder.Status(
            state="failed", message="boom", exception="RuntimeError"
        )
    )

    assert runs.run(config(entry, "standard", seeds=(0, 1)), folder, retry=False) == 3
    (row,) = (row for row in results(folder) if row.metric == "cell")
    assert (row.method, row.seed, row.status, row.flags) == ("faulty", 1, "failed", ("failed",))
    assert row.value is None
    assert "1/2" in next(
        line for line in table_text(folder, "plain").splitlines() if "aulty" in line
    )


def test_a_cell_that_spoils_its_stack_is_the_only_one_that_fails(plugins, tmp_path, capsys):
    folder = tmp_path / "run"
    methods = [{"name": "brittle", "size": size} for size in (0.5, 2.0, 0.7)]
    assert len(lipbench.plan(config(*methods)).stacks()) == 1

    assert runs.run(config(*methods), folder, progress="auto") == ExitCode.FAILED
    assert list(states(folder).values()) == ["done", "failed", "done"]
    assert "one by one" in capsys.readouterr().out


def test_failed_cells_are_tried_again_unless_told_not_to(plugins, tmp_path):
    folder = tmp_path / "run"
    settings = config({"name": "faulty", "at": "start"})
    attempts = []
    for retry in (True, False, True):
        assert runs.run(settings, folder, retry=retry) == ExitCode.FAILED
        attempts.append(cell_folders(folder)["faulty", 0].read_status().attempt)
    assert attempts == [1, 1, 2]


def test_a_loss_that_is_no_number_ends_the_cell_as_nan(plugins, tmp_path):
    folder = tmp_path / "run"

    assert runs.run(config({"name": "faulty", "at": "nan"}, "standard"), folder) == 3
    assert list(states(folder).values()) == ["nan", "done"]
    status = cell_folders(folder)["faulty", 0].read_status()
    assert status.message == "a number was not finite after epoch 1"
    assert not cell_folders(folder)["faulty", 0].model.exists()
    assert {row.value for row in results(folder) if row.method == "faulty"} == {None}


def test_a_network_that_always_says_the_same_has_failed(plugins, tmp_path):
    folder = tmp_path / "run"

    assert runs.run(config({"name": "faulty", "at": "constant"}), folder) == 3
    status = cell_folders(folder)["faulty", 0].read_status()
    assert status.state == "failed"
    assert "predicts class 0 for 100.0%" in status.message
    assert {row.metric for row in results(folder)} == {"cell"}


def test_a_last_network_that_always_says_the_same_is_flagged(plugins, tmp_path):
    folder = tmp_path / "run"

    assert runs.run(config({"name": "faulty", "at": "late"}), folder) == 0
    flagged = {(row.checkpoint, "collapsed to one class" in row.flags) for row in measured(folder)}
    assert flagged == {("chosen", False), ("last", True)}


def measured(folder):
    return [row for row in results(folder) if row.eval_key and row.checkpoint]


@pytest.mark.parametrize("how", ["shape", "nan", "in place"])
def test_an_attack_that_breaks_its_contract_is_an_invalid_row(plugins, tmp_path, how):
    folder = tmp_path / "run"
    attacks = [{"name": "liar", "how": how, "epsilon": [0.1]}, runs.PGD]

    assert runs.run(config(**evaluation(attack=attacks)), folder) == 0
    (row, _) = (row for row in results(folder) if row.estimator == "liar")
    assert (row.status, row.value) == ("invalid", None)
    assert row.flags[-1].startswith("the attack ")
    assert {row.status for row in results(folder) if row.estimator == "pgd"} == {"done"}


def test_an_attack_that_leaves_the_ball_is_brought_back(plugins, tmp_path):
    folder = tmp_path / "run"
    attacks = [{"name": "liar", "how": "far away", "epsilon": [0.0, 1e-9]}]

    assert runs.run(config(**evaluation(attack=attacks)), folder) == 0
    clean = {row.value for row in results(folder) if row.metric == "test_accuracy"}
    assert clean == {row.value for row in results(folder) if row.metric == "robust_accuracy"}


@pytest.mark.parametrize("kind", ["attack", "bound"])
def test_an_evaluation_that_raises_fails_its_cell_and_keeps_all_others(
    plugins, tmp_path, kind, capsys
):
    folder = tmp_path / "run"
    liar = {"name": "liar", "how": "raises"} | ({"epsilon": [0.1]} if kind == "attack" else {})
    broken = config(**evaluation(**{kind: [liar, *runs.EVALUATION[kind]]}))

    assert runs.run(broken, folder, progress="auto") == ExitCode.FAILED
    cell_folder = cell_folders(folder)["standard", 0]
    said = f"{kind} 'liar' raised RuntimeError: boom in the {kind}"
    assert cell_folder.read_status().message == said
    assert said in capsys.readouterr().out
    assert f"fault_{kind}.py" in cell_folder.log.read_text()
    assert [row.metric for row in results(folder)] == ["cell"]

    # Without it the cell is done, and nothing of it had to be done again.
    before = runs.files(folder)
    assert runs.run(config(), folder) == 0
    after = runs.files(folder)
    assert {path for path in before if after.get(path) != before[path]} == {cell_folder.status_file}
    kept = {path.name.split("-")[0] for path in set(after) - set(before)}
    # A bound certifies at the radii of the attacks and starts from the bounds before it: with
    # others its key is another.
    assert kept <= {"rows", "samples", "proof", "seal"}


@pytest.mark.parametrize(
    ("how", "values"),
    [
        ("no proof", ("no proof that can be rechecked", "exceeds upper 1e-06")),
        ("false witness", ("but its witness proves", "lower 1000000.0", "the side of its value")),
        ("elsewhere", ("it speaks of norm 2 on [0, 1]",)),
        ("in another norm", ("it speaks of norm 1 on all of space",)),
    ],
)
def test_a_bound_that_lies_is_a_soundness_violation(plugins, tmp_path, capsys, how, values):
    folder = tmp_path / "run"
    settings = config(**evaluation(bound=[{"name": "liar", "how": how}, "jacobian"]))

    assert runs.run(settings, folder, progress="auto") == ExitCode.UNSOUND
    out = capsys.readouterr().out
    for value in values:
        assert value in out
    assert "1 soundness violation -> exit 6" in out
    status = cell_folders(folder)["standard", 0].read_status()
    assert (status.state, status.flags) == ("failed", ("unsound",))
    assert [(row.metric, row.value) for row in results(folder)] == [("cell", None)]
    before = runs.networks(folder)
    # Neither a second run nor one that leaves failures alone forgets it.
    assert runs.run(settings, folder) == ExitCode.UNSOUND
    assert cell_folders(folder)["standard", 0].read_status().message == status.message
    assert runs.run(settings, folder, retry=False) == ExitCode.UNSOUND
    assert runs.networks(folder) == before
    # Without the liar the cell is as good as any other.
    assert runs.run(config(**evaluation(bound=["jacobian"])), folder) == 0


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("nan", "refused", "what it proves is not finite."),
        ("infinite", "refused", "what it proves is not finite."),
        ("none", "invalid", "it returned None, and no Lipschitz."),
        ("listed proof", "invalid", "its proof is a list, and no mapping of names to tensors."),
        ("strange proof", "invalid", ""),
        ("too small", "invalid", "refuted by jacobian"),
        ("loose", "done", "unverified"),
    ],
)
def test_a_bound_that_proves_nothing_is_listed_and_ends_nothing(
    plugins, tmp_path, how, status, reason
):
    """It has no cell in the table, certifies nothing, and no later bound starts from it."""
    folder = tmp_path / "run"
    settings = config(**evaluation(bound=[{"name": "liar", "how": how}, "jacobian"]))

    for _ in range(2):
        assert runs.run(settings, folder) == 0
    rows = [row for row in results(folder) if row.checkpoint == "chosen"]
    (liar,) = (row for row in rows if row.estimator == "liar")
    assert (liar.status, liar.flags[-1][: len(reason)]) == (status, reason)
    assert (liar.value is None) == (how not in ("too small", "loose"))
    assert [row.status for row in rows if row.estimator == "jacobian"] == ["done"]
    (block,) = blocks(folder)
    headings = {column.heading for column in block.columns}
    assert "Lipschitz lower" in headings
    assert not headings & {"Lipschitz upper", "Ratio", "Certified"}
    assert any("liar lipschitz" in warning for warning in block.warnings)


def test_a_claim_that_is_refuted_is_a_soundness_violation(plugins, tmp_path, capsys):
    """Whoever runs it again hears it again, and no number of it comes into a table."""
    folder = tmp_path / "run"
    bounds = ["product", {"name": "jacobian", "points": 4, "domain": [0.0, 1.0]}]
    settings = config({"name": "faulty", "at": "claim"}, **evaluation(bound=bounds))

    for retry in (True, True, False):
        assert runs.run(settings, folder, retry=retry, progress="auto") == ExitCode.UNSOUND
        assert "1 soundness violation -> exit 6" in capsys.readouterr().out
        status = cell_folders(folder)["faulty", 0].read_status()
        assert "the claimed constant 0.01 in norm 2 is refuted" in status.message
        assert [row.metric for row in results(folder)] == ["cell"]


CERTIFICATES = {
    "all": ("invalid", "which is misclassified as it stands"),
    "one": ("invalid", "its distances are not one number for each sample"),
    "nan": ("invalid", "its distances are not one number"),
    "list": ("invalid", "its distances are not one number"),
    "none": ("invalid", "its distances are not one number"),
    "whole": ("invalid", "its distances are not one number"),
    "mute": ("invalid", "its refuses() gives a int"),
    "modest": ("refused", "not this one"),
    "silent": ("refused", "no reason given"),
    "nothing": ("done", ""),
}


def test_a_certificate_that_is_none_is_listed_and_ends_nothing(plugins, tmp_path):
    folder = tmp_path / "run"
    liars = [{"name": "liar", "how": how, "norm": 2} for how in CERTIFICATES]

    assert runs.run(config(**evaluation(certificate=liars, attack=[])), folder) == 0
    rows = [row for row in results(folder) if row.checkpoint == "chosen"]
    found = [row for row in rows if row.metric == "certified_accuracy" and row.estimator == "liar"]
    found += [row for row in rows if row.metric == "certified_radius_quantile[0.5]"]
    told = {(row.status, row.flags[-1] if row.flags else "") for row in found}
    for status, reason in CERTIFICATES.values():
        assert any(s == status and reason in flag for s, flag in told), reason


@pytest.mark.parametrize("how", ["bold", "meek"])
def test_a_certificate_that_cannot_be_checked_is_unverified(plugins, tmp_path, how):
    """It is right of each sample, and how far it reaches nobody else can prove."""
    folder = tmp_path / "run"
    certificates = [{"name": "liar", "how": how, "norm": 2}, {"name": "local_fastlip", "norm": 2}]
    attack = runs.PGD | {"epsilon": [0.01, 3.0], "steps": 10}
    settings = config(**evaluation(certificate=certificates, attack=[attack], bound=[]))

    for _ in range(2):
        assert runs.run(settings, folder) == 0
    rows = [row for row in results(folder) if row.checkpoint == "chosen"]
    certified = [row for row in rows if row.metric == "certified_accuracy"]
    liar = {row.epsilon: row for row in certified if row.estimator == "liar"}
    honest = {row.epsilon: row for row in certified if row.estimator == "local_fastlip"}
    assert all(("unverified" in row.flags) == (how == "bold") for row in liar.values())
    assert not any("unverified" in row.flags for row in honest.values())
    (block,) = blocks(folder)
    places = zip(block.columns, block.lines[0].entries, strict=True)
    (entry,) = (entry for column, entry in places if column.heading == "Certified")
    assert entry.mean == honest[0.01].value
    if how == "bold":
        assert liar[3.0].status == "invalid"
        assert liar[3.0].flags[-1] == "refuted by pgd"


CLAIMS = {
    "claim raises": "RuntimeError: boom in claims",
    "claim of text": "claims() gives a str, and neither a Claim nor None",
    "claim of nan": "a claimed constant is a number of at least 0, got nan",
    "claim of much": "at least 0 and less than 1, got 1000000000.0",
    "unread claim": "a claimed constant is a number of at least 0, got inf",
}


def test_a_claim_that_says_nothing_is_refused_and_costs_no_other_number(plugins, tmp_path):
    folder = tmp_path / "run"
    settings = config(*({"name": "faulty", "at": at} for at in CLAIMS))

    for _ in range(2):
        assert runs.run(settings, folder) == 0
    rows = [row for row in results(folder) if row.checkpoint == "chosen"]
    claims = [row for row in rows if row.metric == "claimed_lipschitz"]
    for row, reason in zip(claims, CLAIMS.values(), strict=True):
        assert (row.status, row.value) == ("refused", None)
        assert reason in row.flags[-1]
    upper = [row.value for row in rows if row.estimator == "product" and row.metric == "lipschitz"]
    assert len(upper) == len(CLAIMS)
    assert None not in upper


def test_what_diverged_is_not_trained_again(plugins, tmp_path):
    """Nor are its neighbours, who are done."""
    folder = tmp_path / "run"
    methods = [{"name": "standard", "optimizer": {"lr": rate}} for rate in (0.02, 1e30)]
    settings = config(*methods)

    assert runs.run(settings, folder) == ExitCode.FAILED
    assert list(states(folder).values()) == ["done", "nan"]
    before = runs.files(folder)
    assert runs.run(settings, folder) == ExitCode.FAILED
    assert runs.files(folder) == before


def test_a_refusal_fails_the_cell_with_its_reason(tmp_path):
    folder = tmp_path / "run"
    settings = config({"name": "clip", "pairs": 65}, "standard")

    assert runs.run(settings, folder) == ExitCode.FAILED
    cell_folder = cell_folders(folder)["clip", 0]
    assert "needs 65 pair samples" in cell_folder.read_status().message
    assert "Traceback" not in cell_folder.log.read_text()


# ------------------------------------------------------------------------- missing data


def test_missing_data_fail_their_cells_until_they_are_there(plugins, tmp_path, monkeypatch):
    data, folder = tmp_path / "data", tmp_path / "run"
    monkeypatch.setenv("LIPBENCH_DATA", str(data))
    dataset = {"name": "points", "train_size": 100, "pair_size": 20, "validation_size": 40}
    methods = ["standard", {"name": "clip", "pairs": 10}]
    points = runs.benchmark(*methods, name="points", dataset=dataset)
    settings = runs.several(points, runs.benchmark())

    assert runs.run(settings, folder) == ExitCode.FAILED
    *lacking, last = [status(cell, folder) for cell in lipbench.plan(settings).cells]
    assert last.state == "done"
    for failed in lacking:
        assert (failed.state, failed.exception) == ("failed", "DataMissing")
        assert f"{data / 'points.bin'} is missing: put it there" in failed.message

    data.mkdir()
    (data / "points.bin").write_bytes(b"")
    assert runs.run(settings, folder) == 0
    assert status(lipbench.plan(settings).cells[-1], folder).attempt == 1


def status(cell, folder):
    return cell.folder(folder).read_status()


def test_a_file_in_the_way_of_the_folder_exits_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    settings = tmp_path / "b.toml"
    settings.write_text(
        '[[benchmark]]\nname = "a"\ndataset = "digits"\nmodel = "mlp"\n'
        'training = { epochs = 1000 }\n[[benchmark.method]]\nname = "standard"\n'
    )

    assert call(["run", str(settings), "-o", str(tmp_path / "file" / "run")]) == ExitCode.INTERNAL
    err = capsys.readouterr().err
    assert "cannot write" in err
    assert "choose another folder" in err
