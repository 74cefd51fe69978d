"""The command line: arguments become calls, errors become messages and exit codes."""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lipbench.cli import heap
from lipbench.cli.audit_command import audit_command
from lipbench.cli.command import F, Quit, examples, verbose
from lipbench.cli.output import Unbroken, echo
from lipbench.failure import Terminated
from lipbench.registry import PluginError, did_you_mean
from lipbench.runs.exits import ExitCode

if TYPE_CHECKING:
    from lipbench.config.settings import Config
    from lipbench.tables.table import Report

# Everything else is imported by the verb that needs it: torch alone takes seconds.


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)
    signal.signal(signal.SIGTERM, _terminate)
    heap.keep()
    code = call(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)


def call(arguments: Sequence[str]) -> int:
    """Return the exit code of the command line with these arguments; no exception leaves it."""
    verbose = {"verbose": os.environ.get("LIPBENCH_LOG", "").lower() == "debug"}
    if verbose["verbose"]:
        logging.basicConfig(level=logging.DEBUG)
    try:
        result = cli.main(list(arguments), "lipbench", standalone_mode=False, obj=verbose)
        return int(result) if isinstance(result, int) else ExitCode.DONE
    except click.ClickException as error:
        error.show()
        return error.code if isinstance(error, Quit) else error.exit_code
    except click.Abort:
        echo("lipbench: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else ExitCode.INTERNAL
    except Exception as error:
        if verbose["verbose"]:
            traceback.print_exc()
        message, code = _explain(error)
        echo(f"lipbench: {message}", err=True)
        return code


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Return the message and the exit code of an error."""
    from lipbench.config.problems import ConfigError
    from lipbench.dataset import DataMissing
    from lipbench.storage.files import Damaged, StorageError
    from lipbench.storage.results import PlanMissing
    from lipbench.storage.rows import RowsDamaged

    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the configuration"
        return "\n  ".join([head, *error.problems]), ExitCode.USAGE
    # Not imported, for it takes torch: who raised it has it.
    tampered: Any = getattr(sys.modules.get("lipbench.guards.guard"), "Tampered", ())
    if isinstance(error, (PluginError, PlanMissing, tampered)):
        return str(error), ExitCode.USAGE
    if isinstance(error, DataMissing):
        return str(error), ExitCode.FAILED
    if isinstance(error, StorageError | Damaged | RowsDamaged):
        return str(error), ExitCode.INTERNAL
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{reason} (-v shows where it happened)", ExitCode.INTERNAL


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated(int(ExitCode.TERMINATED))


def _selection(command: F) -> F:
    return click.option(
        "--only",
        metavar="NAME",
        multiple=True,
        help="A benchmark of the file; may be repeated. Default: all.",
    )(command)


_CONFIG = click.argument("config", default="benchmarks.toml", type=click.Path(path_type=Path))
_OUT = click.option(
    *("-o", "--out"),
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the run. Default: results/ and the name of the file.",
)
_DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: the file's."
)
_NO_STACK = click.option("--no-stack", is_flag=True, help="Train the cells one by one.")
_DIR = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 90},
    epilog=examples(
        "lipbench plan benchmarks.toml                what would be done, and for how long",
        "lipbench run benchmarks.toml --only digits   train, evaluate, write results.csv",
        "lipbench table results/ --latex              the table of a paper",
        "lipbench audit net.py:Net --input-shape 784  bounds of anyone's network",
    )
    + "\n\nExit codes: 0 done, 1 internal or I/O error, 2 bad usage, configuration or plugin, "
    "3 some cells failed, 4 all cells held by other runs, 5 nothing selected, 6 a lower bound "
    "above an upper one or above what is claimed, or stored numbers that are not what was written, "
    "130 and 143 interrupted.",
)
@click.version_option(package_name="lipbench")
@verbose
def cli() -> None:
    """Benchmark Lipschitz training, and say of every number which side it is true from."""


@cli.command(epilog=examples("lipbench plan benchmarks.toml --only mnist"))
@_CONFIG
@_selection
@_OUT
@_DEVICE
@_NO_STACK
@verbose
def plan(
    config: Path, only: tuple[str, ...], out: Path | None, device: str | None, no_stack: bool
) -> None:
    """Show what would be done, and how long it takes.

    Lists the cells of CONFIG (default: benchmarks.toml) with their states. Nothing is trained and
    nothing is written.
    """
    settings = _read(config, only)
    from lipbench.planning.plan import plan as make_plan

    folder = out or _default_out(config)
    planned = make_plan(settings, folder, only, device=device, stacked=not no_stack)
    echo(planned.describe())


@cli.command(
    epilog=examples(
        "lipbench run benchmarks.toml --only digits -o /tmp/digits",
        "lipbench run benchmarks.toml --device cpu",
    )
)
@_CONFIG
@_selection
@_OUT
@_DEVICE
@_NO_STACK
@click.option(
    "--no-retry",
    is_flag=True,
    help="Leave cells that failed before as they are. (Those that diverged are never tried again.)",
)
@click.option("--progress", type=click.Choice(["auto", "quiet"]), default="auto", hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="Print the last line only.")
@verbose
def run(
    config: Path,
    only: tuple[str, ...],
    out: Path | None,
    device: str | None,
    no_stack: bool,
    no_retry: bool,
    progress: str,
    quiet: bool,
) -> None:
    """Train, evaluate, and write results.csv.

    Does what CONFIG (default: benchmarks.toml) asks for. What is finished already is not done
    again: the same command resumes a run that was stopped, and adds what the file has gained.
    Several runs may share a folder.
    """
    settings = _read(config, only)
    from lipbench.runs.run import run as start

    code = start(
        settings,
        out or _default_out(config),
        only=only,
        device=device,
        stacked=not no_stack,
        retry=not no_retry,
        progress="quiet" if quiet else progress,
    )
    sys.exit(code)


@cli.command(epilog=examples("lipbench status results/benchmarks"))
@_DIR
@verbose
def status(directory: Path) -> None:
    """Show how far the run in the folder DIR is."""
    from lipbench.storage.results import status_table

    found = status_table(directory)
    echo(str(found))
    _end(found.disagreements)


@cli.command(
    epilog=examples(
        "lipbench table results/benchmarks", "lipbench table results/ --latex --paper > table.tex"
    )
)
@_DIR
@click.option("--latex", "style", flag_value="latex", help="For a document with booktabs.")
@click.option("--markdown", "style", flag_value="markdown", help="For a README.")
@click.option("--csv", "style", flag_value="csv", help="Means, deviations and counts of seeds.")
@click.option("--paper", is_flag=True, help="Set the printed values of the CLIP paper beside.")
@click.option("--checkpoint", default="chosen", help="chosen, last, or a point of a path.")
@verbose
def table(directory: Path, style: str | None, paper: bool, checkpoint: str) -> None:
    """Print the table of a paper.

    DIR is a run, a folder of runs, or a results.csv.
    """
    report = _table_report(directory, style or "plain", checkpoint, paper)
    if report.text:
        echo(report.text.rstrip("\n"))
    for line in report.disagreements:
        echo(f"lipbench: left out: {line}", err=True)
    _end(report.disagreements)


cli.add_command(audit_command)


def _only_for_methods(context: click.Context, option: click.Parameter, given: bool) -> bool:
    """Return the flag `--cost`.

    Raises:
        UsageError: If other plugins than methods are listed.
    """
    kind = context.params.get("kind", "methods")
    if given and kind != "methods":
        raise click.UsageError(f"--cost is for methods, not for {kind}: leave it out.")
    return given


@cli.command(
    epilog=examples(
        "lipbench ls methods", "lipbench ls attacks --json", "lipbench ls methods --cost"
    )
)
@click.argument(
    "kind",
    type=click.Choice(["methods", "attacks", "bounds", "certificates", "datasets", "models"]),
    is_eager=True,  # the flag below asks for it
)
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@click.option(
    "--cost",
    is_flag=True,
    callback=_only_for_methods,
    help="Measure what a step of each method costs, in plain steps.",
)
@verbose
def ls(kind: str, as_json: bool, cost: bool) -> None:
    """List what is installed, and by whom."""
    from dataclasses import asdict

    from lipbench.cli.listing import listing, priced, text

    plugins = listing(kind)
    if cost:
        from lipbench.training.step_cost import REFERENCE

        plugins = priced(plugins)
    if as_json:
        rows = [asdict(plugin) for plugin in plugins]
        shown = [{k: v for k, v in row.items() if k != "cost" or cost} for row in rows]
        click.echo(json.dumps(shown, indent=1))
        return
    echo(text(plugins))
    if cost:
        echo(f"\nOne step of plain training is 1: {REFERENCE}.")


@cli.group()
def data() -> None:
    """See and download the data sets.

    They lie in the folder LIPBENCH_DATA if that is set, else in the user's cache.
    """


@data.command("list")
@verbose
def list_data() -> None:
    """Show which data sets are there, and where."""
    from lipbench.data import folder

    where = folder.folder()
    echo(f"folder: {where}")
    for dataset in folder.presence(where):
        state = f"missing: {dataset.missing[0]}" if dataset.missing else "present"
        more = f" and {len(dataset.missing) - 1} more" if len(dataset.missing) > 1 else ""
        echo(f"{dataset.name:20} {state}{more}")


@data.command(epilog=examples("lipbench data fetch mnist"))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@verbose
def fetch(names: tuple[str, ...]) -> None:
    """Download data sets, all if none is named."""
    from lipbench.data import folder

    failures = folder.fetch(names, folder.folder(), click.echo)
    for failure in failures:
        echo(f"lipbench: {failure}", err=True)
    sys.exit(ExitCode.FAILED if failures else ExitCode.DONE)


@cli.command()
@verbose
def env() -> None:
    """Print versions, processor, accelerator, threads."""
    from lipbench.storage.environment import record

    click.echo(json.dumps(record(), indent=1, sort_keys=True))


@cli.command(epilog=examples("lipbench speed", "lipbench speed --only pgd_linf --repeats 9 --json"))
@click.option("--only", metavar="NAME", multiple=True, help="A work; may be repeated.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often each side is timed, in turns; in run_overhead three times as often.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where both sides compute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object with a key for each work.")
@verbose
def speed(only: tuple[str, ...], repeats: int, device: str, as_json: bool) -> None:
    """Measure how fast this project is.

    Times training and attacks on MNIST in turn with two yardsticks: a plain implementation with
    torchvision, a DataLoader and torchattacks, and a plain loop over a tensor in memory. Where
    they do not reach the same accuracy the exit code is 1. Takes about half an hour on two cores.
    """
    names = _works(only)
    from lipbench.planning.device import resolve
    from lipbench.speed import report
    from lipbench.speed.limits import ON_CPU, ON_GPU
    from lipbench.speed.works import bench, measure
    from lipbench.storage.environment import record

    def say(text: str) -> None:
        echo(text, err=True)

    resolved = resolve(device)
    machine = report.machine(record())
    say(machine)
    figures = measure(bench(resolved, repeats, say), names)
    limits = ON_GPU if resolved.type == "cuda" else ON_CPU
    values = report.as_json(figures)
    click.echo(json.dumps(values) if as_json else report.text(figures, limits, machine))
    problems = [text for figure in figures.values() for text in figure.problems]
    for text in problems:
        say(f"lipbench: {text}")
    sys.exit(ExitCode.INTERNAL if problems else ExitCode.DONE)


def _works(only: tuple[str, ...]) -> list[str]:
    """Return the works to measure, in order.

    Raises:
        Quit: If there is no work of a name in `only`, or one of them needs what is not installed.
    """
    from lipbench.speed.limits import ON_CPU, refusals

    for name in only:
        if name not in ON_CPU:
            hint = did_you_mean(name, list(ON_CPU))
            raise Quit(f"there is no work {name!r}{hint} There are {', '.join(ON_CPU)}.")
    refused = refusals()
    for name, reason in refused.items():
        message = f"{name} cannot be measured: {reason}"
        if name in only:
            raise Quit(message)
        if not only:
            echo(f"lipbench: {message}", err=True)
    return [name for name in only or ON_CPU if name not in refused]


def _read(path: Path, only: tuple[str, ...]) -> "Config":
    """Return the configuration.

    Raises:
        Quit: If it has no benchmark of a name in `only`.
    """
    from lipbench.config.file import read

    config = read(path)
    known = [benchmark.name for benchmark in config.benchmarks]
    unknown = [name for name in only if name not in known]
    if unknown:
        code = ExitCode.NOTHING if len(unknown) == len(only) else ExitCode.USAGE
        head = "nothing selected: " if code == ExitCode.NOTHING else ""
        lines = [f"{path} has no benchmark {name!r}{did_you_mean(name, known)}" for name in unknown]
        raise Quit(f"{head}{'; '.join(lines)}\nIt has {', '.join(known)}.", code)
    return config


def _end(disagreements: Sequence[str]) -> None:
    """End the command; what is stored and cannot be believed is a violation of soundness.

    Raises:
        SystemExit: If there is any.
    """
    if disagreements:
        sys.exit(ExitCode.UNSOUND)


def _table_report(path: Path, style: str, checkpoint: str, paper: bool) -> "Report":
    """Make the table of the results at `path`, as `table_report` does.

    Returns:
        The table, and what is wrong with the results.

    Raises:
        Quit: If there is nothing at `path`, or nothing about the checkpoint.
    """
    from lipbench.tables.table import table_report

    if not path.exists():
        raise Quit(f"{path} does not exist: give a folder that `lipbench run` wrote to.")
    try:
        return table_report(path, style, checkpoint=checkpoint, paper=paper)
    except ValueError as error:
        raise Quit(str(error)) from error


def _default_out(config: Path) -> Path:
    return Path("results") / config.stem
