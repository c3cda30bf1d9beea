"""The training loop beside the bare model's forward and backward on the same rows.

    python tools/bench_training.py [--preset nano] [--vocab 8192] [--seq-len 256] [--rows 32]
        [--steps 10] [--rounds 3]

A round times, one after the other: the bare model (forward, plain loss, backward; no optimiser),
the loop (batches from a store, checks, clipping, AdamW), and the making of the batches alone.
Prints the medians over rounds as JSON: seconds of a step, the loop's speed as a share of the
bare model's, and the share of a step that goes to making its batch. Seconds are of CPU time over
all threads, so that a busy machine matters less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from torch import Tensor

from mixc.proxy.model import Model
from mixc.proxy.train import mean_loss, train
from mixc.recipe import Proxy, load
from mixc.solve.lab import Lab
from mixc.store.store import Store
from mixc.tokenize.stage import tokenize

DOMAINS = 7


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--vocab", type=int, default=8192)
    for name, default in (("seq-len", 256), ("rows", 32), ("steps", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    tokens = args.rows * args.seq_len
    proxy = Proxy(
        preset=args.preset,
        steps=args.steps,
        batch_tokens=tokens,
        seq_len=args.seq_len,
        vocab="full",
    )
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder), 2 * args.steps * tokens, args.vocab)
        rounds = [_round(Lab(store, proxy, seed=0)) for _ in range(args.rounds)]
    bare, loop, making = (statistics.median(column) for column in zip(*rounds, strict=True))
    found = {
        "bare_seconds": bare,
        "loop_seconds": loop,
        "batch_seconds": making,
        "share_of_bare_speed": bare / loop,
        "batch_share_of_step": making / loop,
        "tokens_per_cpu_second": args.rows * (args.seq_len - 1) / loop,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found, indent=2))


def _round(lab: Lab) -> tuple[float, float, float]:
    """Seconds of a step: the bare model, the loop, the batch, read from the store afresh."""
    options = lab.train_options(device="cpu")
    steps, batches = options.steps, lab.batches(np.full(DOMAINS, 1 / DOMAINS))
    making = _timed(lambda: [batches(step) for step in range(steps)]) / steps
    model = Model(options.shape, options.vocab_size, options.seed)
    batch = torch.from_numpy(batches(0).tokens)
    _bare(model, batch)
    bare = _timed(lambda: _bare(model, batch, steps)) / steps
    once = replace(options, steps=1)
    train(once, batches, mean_loss)
    start = _timed(lambda: train(once, batches, mean_loss))
    loop = (_timed(lambda: train(options, batches, mean_loss)) - start) / (steps - 1)
    return bare, loop, making


def _bare(model: Model, batch: Tensor, steps: int = 1) -> None:
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        logits = F.linear(model(batch[:, :-1]), model.head).flatten(0, 1)
        F.cross_entropy(logits, batch[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _store(folder: Path, tokens: int, vocab: int) -> Store:
    """A store of DOMAINS domains, `tokens` in all: documents of 400 words of random ids."""
    words = vocab - 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": words, "content": "<|end|>", "special": True, **flags}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {f"a{i}": i for i in range(words)} | {"<|end|>": words},
            "unk_token": "a0",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    generator, domains = np.random.default_rng(0), {}
    for number in range(DOMAINS):
        ids = generator.integers(0, words, (-(-tokens // DOMAINS // 400), 400))
        lines = (json.dumps({"text": " ".join(f"a{i}" for i in row)}) for row in ids)
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
        domains[f"d{number}"] = {"paths": [f"{number}.jsonl"]}
    recipe = {
        "name": "bench",
        "workdir": "out",
        "tokenizer": {"path": "tokenizer.json", "eot": "<|end|>", "engine": "tokenizers"},
        "domains": domains,
        "mixture": {"weights": "uniform", "rows": 10, "seq_len": 16, "formats": ["nanogpt"]},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return tokenize(load(folder / "recipe.yaml"), workers=1)


if __name__ == "__main__":
    main()
