"""Work on the cells of one stack: claim, train, save, evaluate, judge."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from lipbench.data.loading import load
from lipbench.data.splits import Data
from lipbench.dataset import DataMissing
from lipbench.evaluation.attack_outcomes import Attacked, Target
from lipbench.evaluation.evaluate import EvaluationFailed, Trained, Unfit, evaluate, is_measured
from lipbench.evaluation.selection import selection_score
from lipbench.networks.precision import products
from lipbench.planning.cell import Cell
from lipbench.planning.device import device_name, few_threads, resolve
from lipbench.runs.exits import ExitCode
from lipbench.runs.progress import Progress as Report
from lipbench.runs.progress import named
from lipbench.runs.saved_networks import load_network, network_path, save_networks, write_history
from lipbench.runs.training_state import read_progress, write_progress
from lipbench.storage.cell_folder import UNSOUND, State, Status, claim
from lipbench.storage.files import StorageError, quarantine, write_json, write_text
from lipbench.storage.host import host_id
from lipbench.storage.rows import Read, read_rows
from lipbench.storage.tensors import Unreadable, read_tensors
from lipbench.training.ensemble import Progress, Refusal
from lipbench.training.trainer import Trainer
from lipbench.training.trial import Outcome

_SAYS_WHAT = (EvaluationFailed, ExceptionGroup)
"""Errors whose text says already what was raised."""
SAVE_EVERY = 30.0
"""Seconds between two copies of the training state."""


def work_on(
    cells: Sequence[Cell],
    run: Path,
    device: str,
    env_id: str,
    report: Report,
    read: Read = read_rows,
) -> None:
    """Train the stack of `cells` where it is needed, and evaluate all its cells.

    `cells` belong to one stack. A stack that somebody else has claimed is left alone. Files of rows
    are read by `read`, which may remember them.
    """
    siblings = cells[0].siblings()
    held = claim(cell.folder(run) for cell in siblings)
    if held is None:
        return
    with held:
        _Bench(siblings, {cell.key for cell in cells}, run, device, env_id, report, read).work()


class _Bench:
    """One claimed stack."""

    def __init__(
        self,
        siblings: Sequence[Cell],
        wanted: set[str],
        run: Path,
        device: str,
        env_id: str,
        report: Report,
        read: Read,
    ) -> None:
        self.siblings, self.run, self.env_id, self.report = siblings, run, env_id, report
        self.read = read
        self.wanted = wanted
        self.device = resolve(device)
        self.training = siblings[0].entry.training
        self.last = siblings[0].folder(run).last
        self._trained: dict[str, list[Trained]] = {}
        self._outcomes: Attacked | None = None

    def work(self) -> None:
        """Train what has no network yet, then evaluate.

        Raises:
            KeyboardInterrupt: If it is stopped by a signal; the cells are marked as killed.
            SystemExit: Likewise.
        """
        with few_threads(self.siblings[0].benchmark), products():
            self._work()

    def _work(self) -> None:
        pending = [cell for cell in self.siblings if not self._is_trained(cell)]
        try:
            if any(cell.key in self.wanted for cell in pending):
                for cell in pending:
                    self._begin(cell)
                self._train(pending, self.siblings)
                pending = []
            if not pending:
                for cell in self.siblings:  # the first one's; others are of stacks cut otherwise
                    cell.folder(self.run).last.unlink(missing_ok=True)
            for cell in self.siblings:
                self._evaluate(cell)
        except (KeyboardInterrupt, SystemExit):
            for cell in self.siblings:
                status = self._status(cell)
                if status.state == "running":
                    self._conclude(cell, "killed", "stopped by a signal")
            raise

    def _is_trained(self, cell: Cell) -> bool:
        """Return whether the networks of a cell are there and can be read."""
        status = cell.folder(self.run).read_status()
        if status is None or not status.checkpoints:
            return False
        for name in status.checkpoints:
            path = network_path(cell.folder(self.run), name)
            try:
                read_tensors(path)
            except Unreadable as damage:
                self.report.say(f"{damage}; {named(cell)} is trained again")
                quarantine(path)
                return False
        return True

    def _begin(self, cell: Cell) -> None:
        folder = cell.folder(self.run)
        before = folder.read_status()
        write_json(folder.cell, {"train_key": cell.key, "stack": cell.stack, **cell.inputs})
        folder.write_status(
            Status(
                state="running",
                attempt=1 if before is None else before.attempt + 1,
                pid=os.getpid(),
                host=host_id(),
                started=time.time(),
            )
        )
        for pattern in ("rows-*.csv", "*-*.safetensors", "log.txt"):
            for path in folder.path.glob(pattern):
                path.unlink(missing_ok=True)  # of another training of this cell

    def _train(self, pending: Sequence[Cell], members: Sequence[Cell]) -> None:
        """Train `members` as one stack and save the networks of those that are pending.

        Raises:
            StorageError: If a file cannot be written; all else becomes the state of a cell.
            SystemExit: If the process is to end.
        """
        benchmark = self.siblings[0].benchmark
        whole = len(members) == len(self.siblings)
        try:
            dtype = getattr(torch, self.training.dtype)
            data = load(benchmark.dataset, self.device, dtype)
            score = selection_score(benchmark, data)
            trials = [cell.trial for cell in members]
            trainer = Trainer(trials, benchmark.model, data, score)
            progress = trainer.begin()
            if whole:
                progress = self._resumed(progress)
            outcomes = trainer.run(progress, self._saver(members, whole))
        except DataMissing as error:
            self._fail(pending, "failed", error, is_mistake=True)
            return
        except StorageError:
            raise
        except (Exception, SystemExit) as error:
            if _is_signal(error):
                raise
            if len(members) == 1:
                is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
                state: State = "oom" if is_memory else "failed"
                self._fail(pending, state, error, is_mistake=isinstance(error, Refusal))
                return
            self.report.say(f"a stack of {len(members)} failed ({error}): one by one")
        else:
            for cell, outcome in zip(members, outcomes, strict=True):
                if cell in pending:
                    self._save(cell, outcome)
            return
        # One trial may have spoilt it for all, or filled the memory: each gets its chance alone,
        # after the exception has let go of what the stack needed.
        for cell in pending:
            self._train([cell], [cell])

    def _resumed(self, fresh: Progress) -> Progress:
        """Return where the stack stood when it was stopped, else the beginning."""
        stored = read_progress(self.last, fresh, self.siblings[0].stack)
        if stored is None and self.last.exists():
            self.report.say(f"{self.last} is damaged or of other cells: training starts afresh")
        return stored or fresh

    def _saver(self, members: Sequence[Cell], whole: bool) -> Callable[[Progress], None]:
        total = self.training.epochs * len(members[0].trial.points)
        saved = time.monotonic()

        def after_epoch(progress: Progress) -> None:
            nonlocal saved
            done = progress.point * self.training.epochs + progress.epoch
            accuracy = progress.histories[0][-1]["train_accuracy"]
            remark = "" if accuracy is None else f"train {accuracy:.1%}"
            self.report.epoch(list(members), done, total, remark)
            if whole and time.monotonic() - saved >= SAVE_EVERY:
                write_progress(self.last, progress, self.siblings[0].stack)
                saved = time.monotonic()

        return after_epoch

    def _save(self, cell: Cell, outcome: Outcome) -> None:
        folder = cell.folder(self.run)
        write_history(folder, outcome)
        if outcome.state != "done":
            self._conclude(cell, "nan", outcome.message)
            return
        facts = save_networks(folder, outcome)
        status = self._status(cell)
        folder.write_status(replace(status, checkpoints=facts, seconds=outcome.seconds))

    def _evaluate(self, cell: Cell) -> None:
        folder, status = cell.folder(self.run), self._status(cell)
        if not status.checkpoints:
            return
        if status.state != "running" and cell.key not in self.wanted:
            return
        if status.state == "done" and all(is_measured(folder, e) for e in cell.evaluations):
            self.report.cell(cell, "done", before=True)
            return
        began = time.monotonic()
        folder.write_status(replace(status, state="running", pid=os.getpid()))
        benchmark = cell.benchmark
        try:
            data = load(benchmark.dataset, self.device, getattr(torch, self.training.dtype))
            attacked = self._attacked(data)
            place = device_name(self.device)
            networks = self._networks(cell)
            verdict = evaluate(
                cell, folder, networks, data, attacked, place, self.env_id, self.read
            )
        except Unfit as error:
            self._conclude(cell, error.state, str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._fail([cell], "oom", error)
        except DataMissing as error:
            self._fail([cell], "failed", error, is_mistake=True)
        except StorageError:
            raise
        except (Exception, SystemExit) as error:
            if _is_signal(error):
                raise
            self._fail([cell], "failed", error)
        else:
            problems, errors = verdict.contradictions, verdict.errors
            if problems:
                self._conclude(cell, "failed", "; ".join(problems), flags=(UNSOUND,))
            elif errors:
                text = "; ".join(map(str, errors))
                cause = errors[0] if len(errors) == 1 else ExceptionGroup(text, errors)
                self._fail([cell], "failed", cause)
            else:
                self._conclude(cell, "done", "", spent=time.monotonic() - began)

    def _networks(self, cell: Cell) -> list[Trained]:
        """Return the checkpoints of a cell; those of the stack are read once.

        Raises:
            Unreadable: If a file is absent or damaged.
        """
        if cell.key not in self._trained:
            folder, checkpoints = cell.folder(self.run), self._status(cell).checkpoints
            self._trained[cell.key] = [
                load_network(cell, folder, name, facts, self.device)
                for name, facts in checkpoints.items()
            ]
        return self._trained[cell.key]

    def _attacked(self, data: Data) -> Attacked:
        """Return what attacks do to all networks of the stack, of which none is asked for yet."""
        if self._outcomes is None:
            targets = []
            for cell in self.siblings:
                # Another cell's damage is that cell's failure.
                with suppress(Unreadable):
                    targets += [
                        Target(cell=cell, checkpoint=one.name, module=one.module)
                        for one in self._networks(cell)
                    ]
            self._outcomes = Attacked(targets, data)
        return self._outcomes

    def _fail(
        self, cells: Sequence[Cell], state: State, error: BaseException, is_mistake: bool = False
    ) -> None:
        """Record why cells failed; what the user can mend needs no traceback."""
        for cell in cells:
            trace = "".join(traceback.format_exception(error))
            write_text(cell.folder(self.run).log, str(error) if is_mistake else trace)
            named = "" if is_mistake or isinstance(error, _SAYS_WHAT) else type(error).__name__
            said = ": ".join(filter(None, (named, str(error))))
            self._conclude(cell, state, str(error), exception=type(error).__name__, said=said)

    def _conclude(
        self,
        cell: Cell,
        state: State,
        message: str,
        exception: str = "",
        said: str = "",
        flags: tuple[str, ...] = (),
        spent: float = 0.0,
    ) -> None:
        status = self._status(cell)
        message = " ".join(message.split())
        cell.folder(self.run).write_status(
            replace(
                status,
                state=state,
                message=message,
                exception=exception,
                finished=time.time(),
                seconds=(status.seconds or 0.0) + spent,
                flags=flags,
            )
        )
        if cell.key in self.wanted or state != "done":
            self.report.cell(cell, state, " ".join(said.split()) or message)

    def _status(self, cell: Cell) -> Status:
        status = cell.folder(self.run).read_status()
        return status or Status(state="running", pid=os.getpid())


def _is_signal(error: BaseException) -> bool:
    """Return whether it says that the process is to end, and no plugin that it called exit."""
    return isinstance(error, SystemExit) and error.code == ExitCode.TERMINATED
