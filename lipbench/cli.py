"""The command line: arguments become calls, errors become messages and exit codes."""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from lipbench import heap
from lipbench.exits import ExitCode
from lipbench.registry import PluginError, did_you_mean
from lipbench.streams import Unbroken

if TYPE_CHECKING:
    from torch import nn

    from lipbench.auditing import Audit
    from lipbench.settings import Config

F = TypeVar("F", bound=Callable[..., Any])

# Everything else is imported by the verb that needs it: torch alone takes seconds.


class Quit(click.ClickException):
    """A mistake of the user; the message says what to do about it."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code

    def show(self, file: Any = None) -> None:
        """Write the message to standard error."""
        click.echo(f"lipbench: {self.format_message()}", file=file, err=True)


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
        click.echo("lipbench: interrupted", err=True)
        return ExitCode.INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else ExitCode.INTERNAL
    except Exception as error:
        if verbose["verbose"]:
            traceback.print_exc()
        message, code = _explain(error)
        click.echo(f"lipbench: {message}", err=True)
        return code


def _explain(error: Exception) -> tuple[str, ExitCode]:
    """Return the message and the exit code of an error."""
    from lipbench.dataset import DataMissing
    from lipbench.files import Damaged, StorageError
    from lipbench.places import ConfigError
    from lipbench.results import PlanMissing
    from lipbench.rows import RowsDamaged

    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the configuration"
        return "\n  ".join([head, *error.problems]), ExitCode.USAGE
    if isinstance(error, PluginError | PlanMissing):
        return str(error), ExitCode.USAGE
    if isinstance(error, DataMissing):
        return str(error), ExitCode.FAILED
    if isinstance(error, StorageError | Damaged | RowsDamaged):
        return str(error), ExitCode.INTERNAL
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{reason} (-v shows where it happened)", ExitCode.INTERNAL


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(int(ExitCode.TERMINATED))


def _verbose(command: F) -> F:
    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            context.find_root().obj["verbose"] = True

    return click.option(
        *("-v", "--verbose"),
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Show the traceback of an error.",
    )(command)


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


def _examples(*lines: str) -> str:
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 90},
    epilog=_examples(
        "lipbench plan benchmarks.toml                what would be done, and for how long",
        "lipbench run benchmarks.toml --only digits   train, evaluate, write results.csv",
        "lipbench table results/ --latex              the table of a paper",
        "lipbench audit net.py:Net --input-shape 784  bounds of anyone's network",
    )
    + "\n\nExit codes: 0 done, 1 internal or I/O error, 2 bad usage, configuration or plugin, "
    "3 some cells failed, 4 all cells held by other runs, 5 nothing selected, 6 a lower bound "
    "above an upper one or above what is claimed, 130 and 143 interrupted.",
)
@click.version_option(package_name="lipbench")
@_verbose
def cli() -> None:
    """Benchmark Lipschitz training, and say of every number which side it is true from."""


@cli.command(epilog=_examples("lipbench plan benchmarks.toml --only mnist"))
@_CONFIG
@_selection
@_OUT
@_DEVICE
@_NO_STACK
@_verbose
def plan(
    config: Path, only: tuple[str, ...], out: Path | None, device: str | None, no_stack: bool
) -> None:
    """Show what would be done, and how long it takes.

    Lists the cells of CONFIG (default: benchmarks.toml) with their states. Nothing is trained and
    nothing is written.
    """
    settings = _read(config, only)
    from lipbench.planning import plan as make_plan

    place = out or _default_out(config)
    made = make_plan(settings, place, only, device=device, stacked=not no_stack)
    click.echo(made.describe())


@cli.command(
    epilog=_examples(
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
@_verbose
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
    from lipbench.running import run as start

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


@cli.command(epilog=_examples("lipbench status results/benchmarks"))
@_DIR
@_verbose
def status(directory: Path) -> None:
    """Show how far the run in the folder DIR is."""
    from lipbench.results import status_table

    click.echo(str(status_table(directory)))


@cli.command(
    epilog=_examples(
        "lipbench table results/benchmarks", "lipbench table results/ --latex --paper > table.tex"
    )
)
@_DIR
@click.option("--latex", "style", flag_value="latex", help="For a document with booktabs.")
@click.option("--markdown", "style", flag_value="markdown", help="For a README.")
@click.option("--csv", "style", flag_value="csv", help="Means, deviations and counts of seeds.")
@click.option("--paper", is_flag=True, help="Set the printed values of the CLIP paper beside.")
@click.option("--checkpoint", default="chosen", help="chosen, last, or a point of a path.")
@_verbose
def table(directory: Path, style: str | None, paper: bool, checkpoint: str) -> None:
    """Print the table of a paper.

    DIR is a run, a folder of runs, or a results.csv.
    """
    click.echo(_table_text(directory, style or "plain", checkpoint, paper).rstrip("\n"))


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    """Return the numbers of an option such as 1,28,28.

    Raises:
        BadParameter: If there is something else in it.
    """
    if value is None:
        return None
    kind = int if parameter.name == "input_shape" else float
    try:
        found = tuple(kind(part) for part in value.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise click.BadParameter(f"{value!r} is no list of {what} such as 1,28,28.") from None
    if kind is int and min(found) < 1:
        raise click.BadParameter(f"every length is at least 1, got {value}.")
    if parameter.name == "domain" and not (len(found) == 2 and found[0] < found[1]):
        raise click.BadParameter(f"{value} is no pair LO,HI with LO < HI.")
    return found


@cli.command(
    epilog=_examples(
        "lipbench audit mypackage.nets:small --weights small.safetensors --input-shape 1,28,28",
        "lipbench audit net.py:Net --weights net.pt --input-shape 784 --data mnist --claims 1.0",
        "lipbench audit net.py:make --input-shape 3,32,32 --mean .49,.48,.45 --std .25,.24,.26",
    )
)
@click.argument("network", metavar="MODULE:NAME")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its state_dict: safetensors, or what torch.save wrote. Default: as the code makes it.",
)
@click.option(
    "--input-shape",
    required=True,
    callback=_numbers,
    metavar="N,...",
    help="Shape of one input, such as 1,28,28.",
)
@click.option("--data", "dataset", metavar="NAME", help="A data set to measure accuracy on.")
@click.option("--claims", type=float, metavar="L", help="The constant that the network claims.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Share by which the claim may be exceeded, for rounding of the weights.",
)
@click.option("--norm", type=click.Choice(["1", "2", "inf"]), default="2", show_default=True)
@click.option(
    "--domain", callback=_numbers, metavar="LO,HI", help="A box of inputs. Default: all of space."
)
@click.option(
    *("--epsilon", "epsilons"),
    type=click.FloatRange(min=0),
    multiple=True,
    help="A radius for attacks and certificates, in pixel units; may be repeated.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Test samples that accuracy is measured on.",
)
@click.option("--mean", callback=_numbers, metavar="M,...", help="What the network subtracts...")
@click.option("--std", callback=_numbers, metavar="S,...", help="...and divides pixels by.")
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds after which no further bound is begun.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Fixes everything random.")
@click.option(
    *("-o", "--out"),
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("audit.json"),
    show_default=True,
    metavar="FILE",
    help="The report; all proofs go beside it, into a file that ends in .safetensors.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of the text.")
@_verbose
def audit(
    network: str,
    weights: Path | None,
    input_shape: tuple[int, ...],
    dataset: str | None,
    claims: float | None,
    tolerance: float,
    norm: str,
    domain: tuple[float, ...] | None,
    epsilons: tuple[float, ...],
    size: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    time_limit: float,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Bound the Lipschitz constant of any network, and try what is claimed of it.

    MODULE:NAME is imported and gives the network: package.module:make_net or file.py:Net. It is
    put into evaluation mode. Inputs are pixels; what the network does to them first is given by
    --mean and --std if it is no layer. The exit code is 6 if the claim is refuted.
    """
    from lipbench import findings, foreign
    from lipbench.checkpoints import write_tensors
    from lipbench.files import write_json

    settings: dict[str, Any] = {
        "norm": float(norm),
        "domain": domain,
        "claims": claims,
        "tolerance": tolerance,
        "epsilons": epsilons or None,
        "time_limit": time_limit,
        "seed": seed,
    }
    model = _foreign(network, weights, mean, std)
    found = _audited(model, input_shape, dataset, size, settings)
    subject = foreign.describe(model, network, weights, input_shape)
    made = findings.report(found, subject)
    write_json(out, made)
    write_tensors(out.with_suffix(".safetensors"), findings.proofs(found), {"audit": out.name})
    if as_json:
        click.echo(json.dumps(made))
    else:
        click.echo(findings.text(found, foreign.title(subject)))
        click.echo(f"\nreport: {out}, proofs: {out.with_suffix('.safetensors')}")
    sys.exit(ExitCode.UNSOUND if found.verdict == "refuted" else ExitCode.DONE)


@cli.command(epilog=_examples("lipbench ls methods", "lipbench ls attacks --json"))
@click.argument("kind", type=click.Choice(["methods", "attacks", "bounds", "datasets", "models"]))
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@_verbose
def ls(kind: str, as_json: bool) -> None:
    """List what is installed, and by whom."""
    from dataclasses import asdict

    from lipbench.listing import listing, text

    found = listing(kind)
    click.echo(json.dumps([asdict(one) for one in found], indent=1) if as_json else text(found))


@cli.group()
def data() -> None:
    """See and download the data sets.

    They lie in the folder LIPBENCH_DATA if that is set, else in the user's cache.
    """


@data.command("list")
@_verbose
def list_data() -> None:
    """Show which data sets are there, and where."""
    from lipbench import datafolder

    where = datafolder.folder()
    click.echo(f"folder: {where}")
    for one in datafolder.presence(where):
        state = f"missing: {one.missing[0]}" if one.missing else "present"
        more = f" and {len(one.missing) - 1} more" if len(one.missing) > 1 else ""
        click.echo(f"{one.name:20} {state}{more}")


@data.command(epilog=_examples("lipbench data fetch mnist"))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_verbose
def fetch(names: tuple[str, ...]) -> None:
    """Download data sets, all if none is named."""
    from lipbench import datafolder

    failures = datafolder.fetch(names, datafolder.folder(), click.echo)
    for failure in failures:
        click.echo(f"lipbench: {failure}", err=True)
    sys.exit(ExitCode.FAILED if failures else ExitCode.DONE)


@cli.command()
@_verbose
def env() -> None:
    """Print versions, processor, accelerator, threads."""
    from lipbench.environment import record

    click.echo(json.dumps(record(), indent=1, sort_keys=True))


@cli.command(
    epilog=_examples("lipbench speed", "lipbench speed --only pgd_linf --repeats 9 --json")
)
@click.option("--only", metavar="NAME", multiple=True, help="A work; may be repeated.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How often each side is timed, in turns.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where both sides compute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one object with a key for each work.")
@_verbose
def speed(only: tuple[str, ...], repeats: int, device: str, as_json: bool) -> None:
    """Measure how fast this project is.

    Times training and attacks on MNIST in turn with two yardsticks: a plain implementation with
    torchvision, a DataLoader and torchattacks, and a plain loop over a tensor in memory. Where
    they do not reach the same accuracy the exit code is 1. Takes about half an hour on two cores.
    """
    names = _works(only)
    from lipbench.device import resolve
    from lipbench.environment import record
    from lipbench.speed import report
    from lipbench.speed.limits import ON_CPU, ON_GPU
    from lipbench.speed.works import bench, measure

    def say(text: str) -> None:
        click.echo(text, err=True)

    place = resolve(device)
    machine = report.machine(record())
    say(machine)
    figures = measure(bench(place, repeats, say), names)
    limits = ON_GPU if place.type == "cuda" else ON_CPU
    found = report.as_json(figures)
    click.echo(json.dumps(found) if as_json else report.text(figures, limits, machine))
    problems = [text for figure in figures.values() for text in figure.problems]
    for text in problems:
        say(f"lipbench: {text}")
    sys.exit(ExitCode.INTERNAL if problems else ExitCode.DONE)


def _foreign(
    network: str,
    weights: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> "nn.Module":
    """Return the network to audit.

    Raises:
        Quit: If it cannot be had.
    """
    from lipbench import foreign

    if (mean is None) != (std is None):
        raise Quit("--mean and --std are given together or not at all.")
    try:
        model = foreign.load(network, weights)
        return model if mean is None or std is None else foreign.normalised(model, mean, std)
    except foreign.NotLoaded as error:
        raise Quit(str(error)) from error


def _audited(
    model: "nn.Module",
    input_shape: tuple[int, ...],
    dataset: str | None,
    size: int,
    settings: dict[str, Any],
) -> "Audit":
    """Return what is found out about a network.

    Raises:
        Quit: If it is not understood, if the settings do not fit it, or if what is found
            contradicts itself.
    """
    from lipbench import auditing, foreign
    from lipbench.bound import Refused
    from lipbench.bracketing import Unsound

    try:
        data = None
        if dataset is not None:
            data = auditing.labelled(dataset, input_shape, size, foreign.like(model))
        return auditing.audit(model, input_shape, data=data, **settings)
    except Unsound as error:
        raise Quit(f"numbers that cannot both be true: {error}", ExitCode.UNSOUND) from error
    except (Refused, ValueError) as error:
        raise Quit(str(error)) from error


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
            click.echo(f"lipbench: {message}", err=True)
    return [name for name in only or ON_CPU if name not in refused]


def _read(path: Path, only: tuple[str, ...]) -> "Config":
    """Return the configuration.

    Raises:
        Quit: If it has no benchmark of a name in `only`.
    """
    from lipbench.config import read

    config = read(path)
    known = [benchmark.name for benchmark in config.benchmarks]
    unknown = [name for name in only if name not in known]
    if unknown:
        code = ExitCode.NOTHING if len(unknown) == len(only) else ExitCode.USAGE
        head = "nothing selected: " if code == ExitCode.NOTHING else ""
        lines = [f"{path} has no benchmark {name!r}{did_you_mean(name, known)}" for name in unknown]
        raise Quit(f"{head}{'; '.join(lines)}\nIt has {', '.join(known)}.", code)
    return config


def _table_text(path: Path, style: str, checkpoint: str, paper: bool) -> str:
    """Return the table of the results at `path`.

    Raises:
        Quit: If there is nothing at `path`, or nothing about the checkpoint.
    """
    from lipbench.table import table_text

    if not path.exists():
        raise Quit(f"{path} does not exist: give a folder that `lipbench run` wrote to.")
    try:
        return table_text(path, style, checkpoint=checkpoint, paper=paper)
    except ValueError as error:
        raise Quit(str(error)) from error


def _default_out(config: Path) -> Path:
    return Path("results") / config.stem
