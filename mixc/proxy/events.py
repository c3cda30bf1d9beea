"""What training is doing, step by step, for files and trackers. Imports no torch.

Listeners only listen: what a solve finds does not depend on them, and a tracker that fails is
left out from then on.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mixc import progress
from mixc.errors import MixcError
from mixc.store import commit

TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Event:
    """A step of a training. `step` counts from 0, `loss` is the mean of its batch in nats.

    `weights` are the domain weights of the step, where the method moves them. Speed is that of
    the training so far, in this process.
    """

    run: str
    step: int
    steps: int
    loss: float
    tokens: int
    tokens_per_second: float
    seconds_left: float
    weights: Mapping[str, float] | None


Listener = Callable[[Event], None]


class Clock:
    """The speed of a training that may have begun at a later step than 0."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.tokens = steps, 0, 0
        self.start = time.monotonic()

    def tick(self, step: int, tokens: int) -> tuple[float, float]:
        """After a step of so many tokens: tokens a second, and the seconds that are left."""
        self.done, self.tokens = self.done + 1, self.tokens + tokens
        seconds = max(time.monotonic() - self.start, 1e-9)
        return self.tokens / seconds, seconds / self.done * (self.steps - step - 1)


def movers(weights: Mapping[str, float], most: int = 3) -> str:
    """The weights furthest from uniform, as in `web 0.41 (+0.08), code 0.12 (-0.21)`."""
    even = 1 / len(weights)
    order = sorted(weights, key=lambda name: -abs(weights[name] - even))[:most]
    return ", ".join(f"{name} {weights[name]:.2f} ({weights[name] - even:+.2f})" for name in order)


def json_lines(target: str) -> Listener:
    """Events as JSON, one a line, appended to the file `target`, or on stderr for `-`."""

    def write(event: Event) -> None:
        line = json.dumps(asdict(event))
        if target == "-":
            progress.say(line)
        else:
            commit.append_line(Path(target), line.encode())

    return write


def tracker(target: str) -> Listener:
    """A listener for `tensorboard:DIR` or `wandb:PROJECT`.

    Errors: MX008 for another tracker, MX037 where its package is missing.
    """
    kind, _, place = target.partition(":")
    if kind not in TRACKERS or not place:
        raise MixcError(
            "MX008",
            f"unknown tracker '{target}'",
            help="give tensorboard:DIR or wandb:PROJECT",
        )
    log = _tensorboard(place) if kind == "tensorboard" else _wandb(place)
    return _fail_safe(kind, log)


Log = Callable[[str, int, Mapping[str, float]], None]  # (run, step, values)


def _fail_safe(kind: str, log: Log) -> Listener:
    alive = True

    def write(event: Event) -> None:
        nonlocal alive
        if not alive:
            return
        values = {"loss": event.loss, "tokens_per_second": event.tokens_per_second}
        values |= {f"weight/{name}": value for name, value in (event.weights or {}).items()}
        try:
            log(event.run, event.step, values)
        except Exception as error:  # whatever a tracker does, the run goes on
            alive = False
            progress.say(f"{kind} failed, and gets no more events: {error}")

    return write


def _tensorboard(folder: str) -> Log:
    writer = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter(folder)

    def log(run: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"{run}/{name}", value, step)

    return log


def _wandb(project: str) -> Log:
    session: Any = _package("wandb", "wandb").init(project=project)

    def log(run: str, step: int, values: Mapping[str, float]) -> None:
        session.log({f"{run}/step": step} | {f"{run}/{name}": v for name, v in values.items()})

    return log


def _package(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MixcError(
            "MX037",
            f"--track {package} needs the package {package}, which is not installed",
            help=f"pip install {package}",
        ) from error
