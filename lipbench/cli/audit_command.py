"""The command that audits anyone's network."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lipbench.cli.command import Quit, examples, verbose
from lipbench.cli.output import echo
from lipbench.runs.exits import ExitCode

if TYPE_CHECKING:
    from torch import nn

    from lipbench.audit.audit import Audit


class _Numbers(click.ParamType[Any]):
    """Numbers between commas."""

    name = "numbers"
    kind: Callable[[str], float] = float
    what = "numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the numbers of an option such as 1,28,28."""
        try:
            return tuple(type(self).kind(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of {self.what} such as 1,28,28.", param, ctx)


class _Shape(_Numbers):
    """Lengths of axes."""

    name = "shape"
    kind = int
    what = "whole numbers"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the lengths, all at least 1."""
        lengths = super().convert(value, param, ctx)
        if min(lengths) < 1:
            self.fail(f"every length is at least 1, got {value}.", param, ctx)
        return lengths


class _Interval(_Numbers):
    """A pair of numbers, the smaller one first."""

    name = "interval"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the pair."""
        interval = super().convert(value, param, ctx)
        if not (len(interval) == 2 and interval[0] < interval[1]):
            self.fail(f"{value} is no pair LO,HI with LO < HI.", param, ctx)
        return interval


@click.command(
    "audit",
    epilog=examples(
        "lipbench audit mypackage.nets:small --weights small.safetensors --input-shape 1,28,28",
        "lipbench audit net.py:Net --weights net.pt --input-shape 784 --data mnist --claims 1.0",
        "lipbench audit net.py:make --input-shape 3,32,32 --mean .49,.48,.45 --std .25,.24,.26",
    ),
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
    type=_Shape(),
    metavar="N,...",
    help="Shape of one input, such as 1,28,28.",
)
@click.option("--data", "dataset", metavar="NAME", help="A data set to measure accuracy on.")
@click.option("--claims", type=float, metavar="L", help="The constant that the network claims.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Share by which the claim may be exceeded, for rounding of the weights; less than 1.",
)
@click.option("--norm", type=click.Choice(["1", "2", "inf"]), default="2", show_default=True)
@click.option(
    "--domain", type=_Interval(), metavar="LO,HI", help="A box of inputs. Default: all of space."
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
@click.option("--mean", type=_Numbers(), metavar="M,...", help="What the network subtracts...")
@click.option("--std", type=_Numbers(), metavar="S,...", help="...and divides pixels by.")
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
@verbose
def audit_command(
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

    A network with a layer that no rule covers is not read but asked: there is no upper bound, and
    the lower one is a quotient that the network itself computes in float64, less a measured error.
    It is flagged as unverified, and refutes a claim only if it is more than 1 % above it.
    """
    from lipbench.audit import foreign_network, report
    from lipbench.storage.files import write_json
    from lipbench.storage.tensors import write_tensors

    proofs = _beside(out, weights)
    settings: dict[str, Any] = {
        "norm": float(norm),
        "domain": domain,
        "claims": claims,
        "tolerance": tolerance,
        "epsilons": epsilons or None,
        "time_limit": time_limit,
        "seed": seed,
    }
    model = _imported(network, weights, mean, std)
    result = _audited(model, input_shape, dataset, size, settings)
    subject = foreign_network.describe(model, network, weights, input_shape)
    values = report.report(result, subject)
    write_json(out, values)
    write_tensors(proofs, report.proofs(result), {"audit": out.name})
    if as_json:
        click.echo(json.dumps(values))
    else:
        echo(report.text(result, foreign_network.title(subject)))
        echo(f"\nreport: {out}, proofs: {proofs}")
    sys.exit(ExitCode.UNSOUND if result.verdict == "refuted" else ExitCode.DONE)


def _beside(out: Path, weights: Path | None) -> Path:
    """Return the file of the proofs, which is neither that of the report nor of the weights.

    Raises:
        Quit: If it would be.
    """
    proofs = out.with_suffix(".safetensors")
    if proofs.resolve() in [path.resolve() for path in (out, weights) if path is not None]:
        raise Quit(f"the proofs would go to {proofs}: choose another -o.")
    return proofs


def _imported(
    network: str,
    weights: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> "nn.Module":
    """Import the network to audit.

    Returns:
        It, behind its normalisation if one is given.

    Raises:
        Quit: If it cannot be had.
    """
    from lipbench.audit import foreign_network

    if (mean is None) != (std is None):
        raise Quit("--mean and --std are given together or not at all.")
    try:
        model = foreign_network.load(network, weights)
        return (
            model if mean is None or std is None else foreign_network.normalised(model, mean, std)
        )
    except foreign_network.NotLoaded as error:
        raise Quit(str(error)) from error


def _audited(
    model: "nn.Module",
    input_shape: tuple[int, ...],
    dataset: str | None,
    size: int,
    settings: dict[str, Any],
) -> "Audit":
    """Audit a network, on the samples of a data set if one is named.

    Returns:
        What is found out about it.

    Raises:
        Quit: If it is not understood, if the settings do not fit it, or if what is found
            contradicts itself.
    """
    from lipbench.audit import foreign_network
    from lipbench.audit.audit import audit, labelled
    from lipbench.lipschitz.bracket import Unsound
    from lipbench.refused import Refused

    try:
        data = None
        if dataset is not None:
            data = labelled(dataset, input_shape, size, foreign_network.like(model))
        return audit(model, input_shape, data=data, **settings)
    except Unsound as error:
        raise Quit(f"numbers that cannot both be true: {error}", ExitCode.UNSOUND) from error
    except (Refused, ValueError) as error:
        raise Quit(str(error)) from error
