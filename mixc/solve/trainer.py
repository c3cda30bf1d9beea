"""Models trained by name: each with its progress, and each going on where a killed run stopped.

A run's checkpoints stand in one folder, a file per name, and go when the run's answer is out.
The last one of a training holds its end, so that a run that goes on trains nothing twice.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixc import progress
from mixc.proxy.events import Clock, Event, Listener, movers
from mixc.store import commit
from mixc.store.hashes import key_of

if TYPE_CHECKING:  # torch takes a second to import
    from torch import Tensor

    from mixc.proxy.checkpoint import Checkpoint
    from mixc.proxy.train import (
        Backward,
        Batches,
        Objective,
        OnStep,
        Records,
        Trained,
        TrainOptions,
    )


@dataclass(frozen=True)
class Running:
    """How a solve runs. What it finds does not depend on it.

    A training keeps its state every `checkpoint_seconds`; `listeners` hear of every step.
    """

    checkpoint_seconds: float = 60.0
    listeners: tuple[Listener, ...] = ()


QUIETLY = Running()


class Trainer:
    """Trains models under shared options.

    `folder` is where checkpoints go (None: nowhere), `key` names all that the trainings depend on
    beside their options: the store, the method and its options. `domains` are the names of what
    the columns of a record of weights stand for.
    """

    def __init__(
        self,
        options: TrainOptions,
        *,
        folder: Path | None = None,
        key: str = "",
        domains: tuple[str, ...] = (),
        running: Running = QUIETLY,
    ) -> None:
        self.options, self.folder, self.key = options, folder, key
        self.domains, self.running = domains, running

    def train(
        self,
        name: str,
        batches: Batches,
        objective: Objective | None = None,
        *,
        backward: Backward | None = None,
        records: Records | None = None,
        init: Mapping[str, Tensor] | None = None,
        seed: int | None = None,
        label: str | None = None,
    ) -> Trained:
        """`mixc.proxy.train.train`, by default on the plain mean of all losses.

        `name` tells the trainings of a run apart: no two share one. People and listeners see
        `label`, by default the name.
        A record `alpha` [steps, K] is shown beside the loss, as the domain weights of each step.
        `seed` is that of the model's first weights; rows come as `batches` gives them.
        """
        from mixc.proxy.train import mean_loss, train

        options = self.options if seed is None else replace(self.options, seed=seed)
        shown = name if label is None else label
        tokens = len(batches(0).tokens) * options.seq_len
        alpha = None if records is None else records.get("alpha")
        with progress.task(f"train {shown}", options.steps * tokens, "tokens") as bar:
            return train(
                options,
                batches,
                mean_loss if objective is None else objective,
                backward=backward,
                records=records,
                init=init,
                on_step=self._reporter(shown, options.steps, tokens, alpha, bar),
                checkpoint=self._checkpoint(name, options),
            )

    def _reporter(
        self,
        name: str,
        steps: int,
        tokens: int,
        alpha: NDArray[np.float64] | None,
        bar: progress.Task,
    ) -> OnStep:
        """Tells people and listeners of each step of `tokens` tokens."""
        from mixc.proxy import ranks

        clock = Clock(steps)
        listeners = self.running.listeners if ranks.first() else ()

        def report(step: int, loss: float) -> None:
            weights = None
            if alpha is not None and self.domains:
                weights = dict(zip(self.domains, alpha[step].tolist(), strict=True))
            note = f"loss {loss:.3f}" + (f"  {movers(weights)}" if weights else "")
            bar.advance(tokens, note)
            speed, left = clock.tick(step, tokens)
            for listener in listeners:
                listener(Event(name, step, steps, loss, tokens, speed, left, weights))

        return report

    def forget(self, name: str) -> None:
        """Remove the checkpoint of a training whose outcome is kept elsewhere."""
        from mixc.proxy import ranks

        if self.folder is not None and ranks.first():
            commit.remove(self._path(name))

    def _checkpoint(self, name: str, options: TrainOptions) -> Checkpoint | None:
        from mixc.proxy.checkpoint import Checkpoint

        if self.folder is None:
            return None
        about = [self.key, name, asdict(options), environment(options)]
        every = self.running.checkpoint_seconds
        return Checkpoint(self._path(name), key_of(about), every_seconds=every)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def environment(options: TrainOptions) -> dict[str, str]:
    """What training repeats to the bit under."""
    import torch

    from mixc.proxy import ranks
    from mixc.proxy.device import pick_device, pick_precision

    there = pick_device(options.device)
    name = torch.cuda.get_device_name(there) if there.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": f"{there.type} {name}",
        "precision": str(pick_precision(options.precision, there)).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "processes": str(ranks.count()),
    }
