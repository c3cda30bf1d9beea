"""Compare the steps of methods with plain training steps of the same small model.

    python tools/bench_proxy.py
    python tools/bench_proxy.py --only doge --domains 22 --json found.json

DoGE: what the products of domains' gradients, and a mix of these, add to a step; beside it the
ways without `DomainGrads`: backwards once a domain through the graph of the whole batch, as the
paper's authors do, and each domain's rows as a batch of their own. DoReMi: a proxy's step with the
reference's losses at hand, and with the reference's pass. Training: tokens a second of the loop
that methods share, and of nothing but the model, its loss and its optimiser.

All steps of a part run in turns in one process on one thread, first once without being timed.
CPU seconds count: cores may be shared. Prints tables in markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench.measure import machine
from bench.tables import busy, table
from mixc_kernels.domain_grads import DomainGrads
from mixc_kernels.domain_gram import DomainGram
from mixc_kernels.long_products import long_products
from mixc_kernels.room import Buffers
from numpy.typing import NDArray
from torch import Tensor

from mixc.methods.doremi import update
from mixc.proxy.evaluate import row_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import PRESETS, Shape
from mixc.proxy.train import (
    Batch,
    TrainOptions,
    batch_losses,
    domain_stats,
    mean_loss,
    train,
    weighted_loss,
)

PLAIN = "plain step"
OURS = "DomainGrads"
_ENGINE_STEPS = 4


@dataclass(frozen=True)
class Case:
    """A model, and a batch of as many rows of each domain, by domain."""

    model: Model
    batch: Batch
    domains: int

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights that differ, so that none can be taken for another."""
        rising = np.arange(1.0, self.domains + 1)
        return np.asarray(rising / rising.sum())


Step = Callable[[], Any]
Provider = Callable[[Case], Step]


def make_case(shape: Shape, vocab: int, domains: int, tokens: int, seq_len: int) -> Case:
    """`tokens` of each domain, in rows of `seq_len`: random ones, on which no cost depends."""
    rows = max(1, tokens // seq_len)
    rng = np.random.default_rng(0)
    batch = rng.integers(vocab, size=(domains * rows, seq_len + 1))
    domain = np.repeat(np.arange(domains), rows)
    return Case(Model(shape, vocab, seed=0), Batch(batch, domain), domains)


def plain(case: Case) -> Step:
    """Forward, backward."""

    def step() -> None:
        case.model.zero_grad()
        weighted_loss(batch_losses(case.model, case.batch), case.batch, case.weights).backward()  # type: ignore[no-untyped-call]

    return step


def domain_grads(late: bool, keep_bytes: int = 1 << 40, doge: bool = False) -> Provider:
    """One backward pass by domain; with weights that come `late`, from the products.

    As `doge` takes them, domains are in halves, and products are with the gradients' sum.
    """

    def provider(case: Case) -> Step:
        domain, buffers = torch.from_numpy(case.batch.domain), Buffers()
        options: dict[str, Any] = {"keep_bytes": keep_bytes, "buffers": buffers}
        if doge:
            options |= {"halves": True, "toward": np.ones(case.domains)}

        def weights(gram: DomainGram) -> NDArray[np.float64]:
            assert len(gram.products) == case.domains
            return case.weights

        def step() -> NDArray[np.float64] | None:
            with DomainGrads(case.model, domain, case.domains, **options) as grads:
                losses = batch_losses(case.model, case.batch)
            gram = grads.backward(losses, weights if late else case.weights)
            return None if doge else gram.products

        return step

    return provider


def backwards_by_domain(case: Case) -> Step:
    """One graph, gone through backwards once a domain; all gradients are held."""
    parameters = list(case.model.parameters())

    def step() -> NDArray[np.float64]:
        losses = batch_losses(case.model, case.batch)
        rows = []
        for k in range(case.domains):
            loss = losses[torch.from_numpy(case.batch.domain == k)].mean()
            rows.append(_flat(torch.autograd.grad(loss, parameters, retain_graph=True)))
        return _mix(case, torch.stack(rows))

    return step


def batches_by_domain(case: Case) -> Step:
    """Each domain's rows forward and backward alone; all gradients are held."""
    parameters = list(case.model.parameters())

    def step() -> NDArray[np.float64]:
        rows = []
        for k in range(case.domains):
            mine = case.batch.domain == k
            loss = batch_losses(case.model, Batch(case.batch.tokens[mine], case.batch.domain[mine]))
            rows.append(_flat(torch.autograd.grad(loss.mean(), parameters)))
        return _mix(case, torch.stack(rows))

    return step


def _flat(grads: Sequence[Tensor]) -> Tensor:
    return torch.cat([grad.flatten() for grad in grads])


def _mix(case: Case, each: Tensor) -> NDArray[np.float64]:
    """Set p.grad from the gradients [K, P]; their products."""
    mixed = torch.from_numpy(case.weights).float() @ each
    parameters = list(case.model.parameters())
    parts = torch.split(mixed, [p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad = part.view_as(p)
    return np.asarray(long_products(each, each).numpy())


def doremi(cached: bool) -> Provider:
    """Forward, excess over the reference's losses, the update of the weights, backward."""

    def provider(case: Case) -> Step:
        reference = Model(case.model.shape, case.model.vocab, seed=1).requires_grad_(False)
        known = row_losses(reference, case.batch.tokens)

        def step() -> None:
            case.model.zero_grad()
            losses = batch_losses(case.model, case.batch)
            there = known if cached else row_losses(reference, case.batch.tokens)
            stats = domain_stats(losses, case.batch, case.domains, there)
            lam = np.nan_to_num(stats.mean_excess())
            alpha = update(case.weights, lam, stats.present, eta=1.0, smoothing=1e-3)
            weighted_loss(losses, case.batch, alpha).backward()  # type: ignore[no-untyped-call]

        return step

    return provider


def bare_training(case: Case) -> Step:
    """Some steps of the model, its loss and AdamW, and nothing else."""

    def step() -> None:
        model = Model(case.model.shape, case.model.vocab, seed=0)
        optimiser = torch.optim.AdamW(model.parameters())
        for _ in range(_ENGINE_STEPS):
            optimiser.zero_grad()
            batch_losses(model, case.batch).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    return step


def engine_training(case: Case) -> Step:
    """As many steps of the loop that methods share."""
    length = case.batch.tokens.shape[1] - 1
    options = TrainOptions(case.model.shape, case.model.vocab, length, _ENGINE_STEPS, device="cpu")

    def batches(_: int) -> Batch:
        return case.batch

    return lambda: train(options, batches, mean_loss)


# A part's first step is what the others are compared with.
PARTS: dict[str, dict[str, Provider]] = {
    "doge": {
        PLAIN: plain,
        OURS: domain_grads(late=False),
        f"{OURS}, weights from the products": domain_grads(late=True),
        f"{OURS}, the same by a second pass": domain_grads(late=True, keep_bytes=0),
        f"{OURS}, as DoGE takes it: halves, a sum": domain_grads(late=True, doge=True),
        "backwards once a domain": backwards_by_domain,
        "a batch for each domain": batches_by_domain,
    },
    "doremi": {
        PLAIN: plain,
        "proxy's step, reference's losses cached": doremi(cached=True),
        "proxy's step, with the reference's pass": doremi(cached=False),
    },
    "training": {"bare model": bare_training, "the shared loop": engine_training},
}


def measure(steps: dict[str, Step], repeat: int) -> dict[str, dict[str, Any]]:
    """CPU and wall seconds of each step, in turns, and how far its products are off the last's."""
    products = {name: step() for name, step in steps.items()}
    found: dict[str, dict[str, Any]] = {name: {"cpu": [], "wall": []} for name in steps}
    for _ in range(repeat):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            found[name]["cpu"].append(time.process_time() - cpu)
            found[name]["wall"].append(time.perf_counter() - wall)
    exact = list(products.values())[-1]
    for name, one in products.items():
        if isinstance(one, np.ndarray) and one is not exact:
            found[name]["error"] = float(np.linalg.norm(one - exact) / np.linalg.norm(exact))
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all parts that are asked for."""
    torch.set_num_threads(1)
    packages = ("mixc", "torch", "numpy")
    about = {
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "model": vars(options.shape) | {"vocab": options.vocab},
        "rows": [],
    }
    for part in options.only:
        for domains, tokens in zip(options.domains, options.tokens, strict=True):
            case = make_case(options.shape, options.vocab, domains, tokens, options.seq_len)
            steps = {name: provider(case) for name, provider in PARTS[part].items()}
            for name, one in measure(steps, options.repeat).items():
                row = {"part": part, "domains": domains, "tokens": domains * tokens, "step": name}
                about["rows"].append(row | one)
    return about


def render(about: dict[str, Any]) -> str:
    """What was measured, on what, as tables."""
    machine, model = about["machine"], about["model"]
    said = [
        f"{machine['cpu']}, one thread, load {machine['load']:.1f} at the start; {about['date']}",
        *busy(machine),
        ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        ", ".join(f"{name} {value}" for name, value in model.items()),
    ]
    parts = ["\n".join(f"- {line}" for line in said)]
    groups = dict.fromkeys((row["part"], row["domains"]) for row in about["rows"])
    for part, domains in groups:
        rows = [r for r in about["rows"] if (r["part"], r["domains"]) == (part, domains)]
        parts.append(_table(part, domains, rows))
    return "\n\n".join(parts)


def _table(part: str, domains: int, rows: list[dict[str, Any]]) -> str:
    steps = _ENGINE_STEPS if part == "training" else 1
    first = median(rows[0]["cpu"])
    lines = []
    for row in rows:
        cpu = median(row["cpu"])
        lines.append(
            (
                row["step"],
                f"{cpu / steps:.3f} ({min(row['cpu']) / steps:.3f})",
                f"{median(row['wall']) / steps:.3f}",
                f"{cpu / first:.2f}",
                f"{row['tokens'] * steps / cpu:,.0f}",
                f"{row['error']:.1e}" if "error" in row else "",
            )
        )
    head = (f"{part}, {domains} domains, {rows[0]['tokens']:,} tokens", "CPU s a step (best)")
    return table((*head, "wall s", "to the first", "tokens / CPU s", "products off by"), lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="parts, by commas", default=",".join(PARTS))
    parser.add_argument("--domains", type=int, nargs="+", default=[7, 22])
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 128], help="of each domain")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--preset", choices=PRESETS, default="micro", help="but for its layers")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5, help="timed rounds; the median counts")
    parser.add_argument("--json", type=Path, help="write what was measured there, too")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if len(options.domains) != len(options.tokens):
        parser.error("--domains and --tokens are as many")
    chosen = PRESETS[options.preset]
    options.shape = Shape(options.layers, chosen.width, chosen.heads, chosen.hidden)
    return options


def main() -> None:
    options = parse()
    about = run(options)
    if options.json is not None:
        options.json.write_text(json.dumps(about, indent=1) + "\n")
    print(render(about))


if __name__ == "__main__":
    main()
