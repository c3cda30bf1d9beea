"""Options that commands share, and what they mean to the pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from mixc.engine.ray import Cluster
    from mixc.solve.trainer import Running

Command = TypeVar("Command", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def json_option(command: Command) -> Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")(
        command
    )


def recipe_options(command: Command) -> Command:
    """A recipe, its overrides, and `--json`."""
    command = click.option(
        "-s",
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the recipe, as in -s mixture.tokens=20M. Repeatable.",
    )(command)
    return click.argument("recipe", type=PATH)(json_option(command))


def workers_option(command: Command) -> Command:
    """`--workers`."""
    return click.option(
        "--workers",
        type=click.IntRange(1),
        default=lambda: len(os.sched_getaffinity(0)),
        show_default="all cores",
        help="Worker processes. The output does not depend on it.",
    )(command)


def gather_options(command: Command) -> Command:
    """How rows are gathered, which `plan` foresees."""
    command = click.option(
        "--gather",
        type=click.Choice(["auto", "one-pass", "two-pass"]),
        default="auto",
        show_default=True,
        help="How tokens are gathered: one pass reads the store at random; two read and write "
        "everything twice, in long runs, as suits a store larger than memory on a disk that turns "
        "or over a network, which auto looks for. The output does not depend on it.",
    )(command)
    return click.option(
        "--decks/--no-decks",
        help="Keep each domain's rows beside the mixture, in the order that mixtures take them: "
        "a mixture of other weights is then a merge. Takes as much disk again.",
    )(command)


def engine_options(command: Command) -> Command:
    """What builds a mixture."""
    command = click.option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The Ray cluster; default: $RAY_ADDRESS, or else one of this machine, for this run.",
    )(gather_options(command))
    return click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="What builds the mixture: workers of this machine, or of a Ray cluster with a shared "
        "file system, one worker a CPU or --workers (pip install 'mixc[ray]').",
    )(command)


def how_to_build(
    workers: int, engine: str, ray_address: str | None, gather: str, decks: bool
) -> dict[str, Any]:
    """How a mixture is built, as the pipeline's functions take it."""
    _keep_numba_alone()
    if engine == "ray" and (decks or gather == "two-pass"):
        raise click.UsageError("--decks and --gather two-pass need --engine local")
    cluster = _cluster(engine, ray_address, workers)
    return {"workers": workers, "cluster": cluster, "gather": gather, "decks": decks}


def _keep_numba_alone() -> None:
    """Let numba load nothing that other packages add to it: it takes a third of a second."""
    with suppress(ImportError):
        from numba.core import entrypoints

        entrypoints._already_initialized = True


def _cluster(engine: str, ray_address: str | None, workers: int) -> Cluster | None:
    """The cluster that is asked for. Only --workers itself bounds what it uses."""
    if engine == "local":
        if ray_address is not None:
            raise click.UsageError("--ray-address needs --engine ray")
        return None
    from mixc.engine.ray import make_cluster

    given = click.get_current_context().get_parameter_source("workers")
    return make_cluster(ray_address, None if given is ParameterSource.DEFAULT else workers)


def running_options(command: Command) -> Command:
    """How models are trained, and who hears of it."""
    command = click.option(
        "--checkpoint-every",
        "checkpoint_seconds",
        type=click.FloatRange(0),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How often a training keeps its state, to go on from if it is stopped.",
    )(command)
    command = click.option(
        "--track",
        "trackers",
        multiple=True,
        metavar="TRACKER",
        help="Also tell tensorboard:DIR or wandb:PROJECT of every training step. Repeatable.",
    )(command)
    return click.option(
        "--events",
        metavar="FILE",
        help="Append every training step to FILE as a line of JSON; - is stderr.",
    )(command)


def how_to_train(
    checkpoint_seconds: float, trackers: tuple[str, ...], events: str | None
) -> Running:
    """How models are trained, as the pipeline's functions take it."""
    from mixc.proxy.events import json_lines, tracker
    from mixc.solve.trainer import Running

    listeners = [*map(tracker, trackers), *map(json_lines, [events] if events else [])]
    return Running(checkpoint_seconds, tuple(listeners))


store_option = click.option(
    "--store", type=PATH, help="The store of a mixture; default: the one beside it."
)
