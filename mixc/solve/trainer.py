"""Models trained by name: each with its progress, and each going on where a killed run stopped.

A run's checkpoints stand in one folder, a file per name, and go when the run's answer is out.
The last one of a training holds its end, so that a run that goes on trains nothing twice.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixc import progress
from mixc.store import commit
from mixc.store.hashes import key_of

if TYPE_CHECKING:  # torch takes a second to import
    from torch import Tensor

    from mixc.proxy.checkpoint import Checkpoint
    from mixc.proxy.train import Backward, Batches, Objective, Records, Trained, TrainOptions


class Trainer:
    """Trains models under shared options.

    `folder` is where checkpoints go (None: nowhere), `key` names all that the trainings depend on
    beside their options: the store, the method and its options.
    """

    def __init__(self, options: TrainOptions, *, folder: Path | None = None, key: str = "") -> None:
        self.options, self.folder, self.key = options, folder, key

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
    ) -> Trained:
        """`mixc.proxy.train.train`, by default on the plain mean of all losses.

        `name` is shown to people and tells the trainings of a run apart: no two share one.
        `seed` is that of the model's first weights; rows come as `batches` gives them.
        """
        from mixc.proxy.train import mean_loss, train

        options = self.options if seed is None else replace(self.options, seed=seed)
        tokens = options.steps * len(batches(0).tokens) * options.seq_len
        with progress.task(f"train {name}", tokens, "tokens") as bar:
            return train(
                options,
                batches,
                mean_loss if objective is None else objective,
                backward=backward,
                records=records,
                init=init,
                on_step=lambda _, loss: bar.advance(tokens / options.steps, f"loss {loss:.3f}"),
                checkpoint=self._checkpoint(name, options),
            )

    def forget(self, name: str) -> None:
        """Remove the checkpoint of a training whose outcome is kept elsewhere."""
        if self.folder is not None:
            commit.remove(self._path(name))

    def _checkpoint(self, name: str, options: TrainOptions) -> Checkpoint | None:
        from mixc.proxy.checkpoint import Checkpoint

        if self.folder is None:
            return None
        about = [self.key, name, asdict(options), environment(options.device)]
        return Checkpoint(self._path(name), key_of(about))

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def environment(device: str) -> dict[str, str]:
    """What training repeats to the bit under."""
    import torch

    from mixc.proxy.device import pick_device

    there = pick_device(device)
    name = torch.cuda.get_device_name(there) if there.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": f"{there.type} {name}",
        "threads": str(torch.get_num_threads()),
    }
