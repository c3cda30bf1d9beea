"""The training loop beside the bare model's forward and backward on the same rows.

    python tools/bench_training.py [--preset nano] [--vocab 8192] [--seq-len 256] [--rows 32]
        [--steps 10] [--rounds 3]
    python tools/bench_training.py --stacked 4 --rows 1
    python tools/bench_training.py --vocab 50257 --compact 8192

A round times, one after the other: the bare model (forward, plain loss, backward; no optimiser),
the loop (batches from a store, checks, clipping, AdamW), and the making of the batches alone.
Prints the medians over rounds as JSON: seconds of a step, the loop's speed as a share of the
bare model's, and the share of a step that goes to making its batch. Seconds are of CPU time over
all threads, so that a busy machine matters less.

With `--stacked` it is so many bare models in turns, and the same as one by torch.func.vmap, each
on rows of its own; with `--compact` the loop on all of the store's ids, and on so many.
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
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--stacked", type=int, metavar="MODELS")
    other.add_argument("--compact", type=int, metavar="IDS")
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
        lab = Lab(store, proxy, seed=0)
        if args.stacked:
            found = _medians(args.rounds, lambda: _stacked(lab, args.stacked))
            found["stacked_speed"] = found["turns_seconds"] / found["stacked_seconds"]
        elif args.compact:
            small = Lab(store, proxy.model_copy(update={"vocab": args.compact}), seed=0)
            found = _medians(args.rounds, lambda: _compact(lab, small))
            found["compact_speed"] = found["full_seconds"] / found["compact_seconds"]
        else:
            found = _medians(args.rounds, lambda: _round(Lab(store, proxy, seed=0)))
            bare, loop = found["bare_seconds"], found["loop_seconds"]
            found["share_of_bare_speed"] = bare / loop
            found["batch_share_of_step"] = found["batch_seconds"] / loop
            found["tokens_per_cpu_second"] = args.rows * (args.seq_len - 1) / loop
    print(json.dumps(found | {"threads": torch.get_num_threads()}, indent=2))


def _medians(rounds: int, timed: Callable[[], dict[str, float]]) -> dict[str, float]:
    found = [timed() for _ in range(rounds)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def _round(lab: Lab) -> dict[str, float]:
    """Seconds of a step: the bare model, the loop, the batch, read from the store afresh."""
    options = lab.train_options(device="cpu")
    steps, batches = options.steps, lab.batches(np.full(DOMAINS, 1 / DOMAINS))
    making = _timed(lambda: [batches(step) for step in range(steps)]) / steps
    model = Model(options.shape, options.vocab_size, options.seed)
    batch = torch.from_numpy(batches(0).tokens)
    _bare(model, batch)
    bare = _timed(lambda: _bare(model, batch, steps)) / steps
    return {"bare_seconds": bare, "loop_seconds": _loop(lab), "batch_seconds": making}


def _loop(lab: Lab) -> float:
    """Seconds of a step of the loop, start-up left out."""
    options = lab.train_options(device="cpu")
    batches = lab.batches(np.full(DOMAINS, 1 / DOMAINS))
    once = replace(options, steps=1)
    train(once, batches, mean_loss)
    start = _timed(lambda: train(once, batches, mean_loss))
    return (_timed(lambda: train(options, batches, mean_loss)) - start) / (options.steps - 1)


def _compact(full: Lab, small: Lab) -> dict[str, float]:
    """Seconds of a step of the loop on all ids of a store, and on few."""
    return {"full_seconds": _loop(full), "compact_seconds": _loop(small)}


def _stacked(lab: Lab, count: int) -> dict[str, float]:
    """Seconds of a step of so many bare models: in turns, and as one."""
    options, batches = lab.train_options(), lab.batches(np.full(DOMAINS, 1 / DOMAINS))
    steps = options.steps
    models = [Model(options.shape, options.vocab_size, seed) for seed in range(count)]
    rows = torch.stack([torch.from_numpy(batches(i % steps).tokens) for i in range(count)])
    weights, _ = torch.func.stack_module_state(models)

    def loss(given: dict[str, Tensor], batch: Tensor) -> Tensor:
        hidden = torch.func.functional_call(models[0], given, (batch[:, :-1],))
        logits = F.linear(hidden, given["head"]).flatten(0, 1)
        return F.cross_entropy(logits, batch[:, 1:].flatten())

    def together(times: int) -> None:
        for _ in range(times):
            losses = torch.func.vmap(loss)(weights, rows)
            torch.autograd.grad(losses.sum(), list(weights.values()))

    def in_turns(times: int) -> None:
        for model, batch in zip(models, rows, strict=True):
            _bare(model, batch, times)

    found = {}
    for name, work in (("turns_seconds", in_turns), ("stacked_seconds", together)):
        work(1)
        found[name] = _timed(lambda work=work: work(steps)) / steps  # type: ignore[misc]
    return found


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
