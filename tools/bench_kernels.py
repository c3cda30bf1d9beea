"""Compare the loss of a linear head with torch's and others': time, memory, and the loss itself.

    python tools/bench_kernels.py --out kernels.json
    python tools/bench_kernels.py --shapes 8192x768x50257 --dtype bfloat16 --only mixc eager quack

Shapes are tokens x width x vocabulary. All run in turns, forward, backward alone and both, in one
process: so a change of the machine's speed hits all. Times are p20, p50 and p80 in ms; on a CPU of
one thread, its seconds of CPU time. Memory beyond the inputs': on a CPU the growth of the resident
set in a process of its own, on a GPU what torch allocated at the height; and the same beyond what
the call returns, the gradients by hidden states and weight. Errors are relative: the loss's beside
`fused_linear_ce`, the gradients' beside float64, at a small shape. Who cannot run stands in the
table, with the reason. Prints markdown; `--out` keeps all, with versions and the machine.

Without a GPU, TRITON_INTERPRET=1 lets Liger run at small shapes: its errors then mean something,
its times do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own custom)
from bench.measure import machine
from bench.tables import table
from mixc_kernels.fused_linear_ce import fused_linear_ce
from torch import Tensor

SHAPES = {
    "cpu": ("512x256x50257", "2048x256x50257"),
    "cuda": ("8192x768x50257", "16384x2048x50257"),
}
MODES = ("forward", "backward", "full")
PACKAGES = ("torch", "triton", "numpy", "liger-kernel", "cut-cross-entropy", "quack-kernels")
SMALL = (64, 64, 512)  # what a provider is tried and warmed up with
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# hidden [N, D], weight [V, D], target int64[N] -> the mean loss
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def known(mode: str) -> Loss:
    """Of mixc, weights of tokens known before the forward pass."""

    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        share = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
        total = fused_linear_ce(hidden, weight, target, token_weight=share, mode=mode).total
        assert total is not None
        return total

    return loss


def later(mode: str) -> Loss:
    """Of mixc, weights of tokens chosen after the forward pass."""
    return lambda hidden, weight, target: fused_linear_ce(
        hidden, weight, target, mode=mode, budget_bytes=4 << 30
    ).loss.mean()


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """All logits, in float32 for the loss, as trainers have it."""
    return F.cross_entropy(F.linear(hidden, weight).float(), target)


def eager64(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The same in float64."""
    return F.cross_entropy(F.linear(hidden, weight), target)


def torch_fused() -> Loss:
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda *inputs: F.linear_cross_entropy(*inputs, options=options)


def liger() -> Loss:
    module = import_module("liger_kernel.transformers.functional")
    return on_gpu(module.liger_fused_linear_cross_entropy, interpreted=True)


def cut(**settings: Any) -> Loss:
    module = import_module("cut_cross_entropy")
    loss = partial(module.linear_cross_entropy, **settings)
    return loss if settings["impl"] == "torch_compile" else on_gpu(loss)


def quack() -> Loss:
    return on_gpu(import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy)


def on_gpu(loss: Loss, *, interpreted: bool = False) -> Loss:
    """A loss that says so where it is asked for on a CPU; Triton's interpreter may run it there.

    Whether it takes the call is looked at in any case, so that a peer's new signature is seen.
    """
    can = interpreted and INTERPRETED

    def checked(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        signature(loss).bind(hidden, weight, target)
        if not hidden.is_cuda and not can:
            raise RuntimeError("it needs a CUDA device" + " or TRITON_INTERPRET=1" * interpreted)
        return loss(hidden, weight, target)

    return checked


# What makes a loss; it raises what is missing.
PROVIDERS: dict[str, Callable[[], Loss]] = {
    "mixc": lambda: known("auto"),
    "mixc, weights later": lambda: later("auto"),
    "mixc vocab": lambda: later("vocab"),
    "mixc hybrid": lambda: known("hybrid"),
    "mixc hybrid, weights later": lambda: later("hybrid"),
    "mixc store": lambda: later("store"),
    "eager": lambda: eager,
    "torch.compile": lambda: torch.compile(eager),
    "torch linear_cross_entropy": torch_fused,
    "Liger": liger,
    "cut-cross-entropy": lambda: cut(impl="cce"),
    "cut-cross-entropy, no filter": lambda: cut(impl="cce", filter_eps=None),
    "cut-cross-entropy, compiled": lambda: cut(impl="torch_compile"),
    "quack": quack,
}


@dataclass(frozen=True)
class Case:
    """Inputs of a shape (tokens, width, vocabulary)."""

    hidden: Tensor
    weight: Tensor
    target: Tensor

    def exact(self) -> Case:
        """The same numbers in float64."""
        hidden, weight = (x.detach().double().requires_grad_() for x in (self.hidden, self.weight))
        return Case(hidden, weight, self.target)

    def run(self, loss: Loss, mode: str) -> Callable[[], Any]:
        """What is timed; the graph of a backward pass is there before."""
        inputs = self.hidden, self.weight
        if mode == "forward":
            return torch.no_grad()(lambda: loss(*inputs, self.target))
        if mode == "full":
            return lambda: torch.autograd.grad(loss(*inputs, self.target), inputs)
        scalar = loss(*inputs, self.target)
        return lambda: torch.autograd.grad(scalar, inputs, retain_graph=True)


def make_case(shape: tuple[int, int, int], dtype: str, device: str) -> Case:
    """The same for the same shape: logits of a variance of about one."""
    rng, (tokens, width, vocab) = np.random.default_rng(0), shape
    hidden = torch.from_numpy(rng.standard_normal((tokens, width), np.float32))
    weight = torch.from_numpy(rng.standard_normal((vocab, width), np.float32)).mul_(width**-0.5)
    target = torch.from_numpy(rng.integers(vocab, size=tokens)).to(device)
    hidden, weight = (one.to(device, getattr(torch, dtype)) for one in (hidden, weight))
    return Case(hidden.requires_grad_(), weight.requires_grad_(), target)


def timed(run: Callable[[], object], device: str) -> float:
    """Milliseconds of one run: of CPU time, or between two events of the GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return 1000 * (time.process_time() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def usable(
    names: list[str], options: argparse.Namespace
) -> tuple[dict[str, Loss], dict[str, float], dict[str, str]]:
    """(losses, errors of their gradients, what the others want for), each tried at a small shape.

    An error is the larger of both gradients', relative, beside those of all logits in float64.
    """
    losses, errors, missing = {}, {}, {}
    case = make_case(SMALL, options.dtype, options.device)
    wanted = [one.double() for one in case.exact().run(eager64, "full")()]
    for name in names:
        try:
            loss = PROVIDERS[name]()
            found = case.run(loss, "full")()
        except Exception as error:  # whatever a peer has against this machine
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        else:
            losses[name] = loss
            pairs = zip(found, wanted, strict=True)
            errors[name] = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    return losses, errors, missing


def measure(
    losses: dict[str, Loss], shape: tuple[int, int, int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each loss and mode at a shape."""
    case = make_case(shape, options.dtype, options.device)
    wanted = fused_linear_ce(case.hidden, case.weight, case.target).loss.double().mean().item()
    taken: dict[tuple[str, str], list[float]] = {}
    for turn in range(options.repeat + 1):
        for name, loss in losses.items():
            for mode in options.modes:
                run = case.run(loss, mode)
                taken.setdefault((name, mode), [])
                ms = timed(run, options.device)
                if turn:  # the first warms up
                    taken[name, mode].append(ms)
    rows = []
    for (name, mode), found in taken.items():
        p20, p50, p80 = np.percentile(found, [20, 50, 80])
        row = {"provider": name, "shape": shape, "mode": mode, "p20": p20, "p50": p50, "p80": p80}
        with torch.no_grad():
            off = abs(losses[name](case.hidden, case.weight, case.target).item() - wanted) / wanted
        row |= {"loss_error": off, "memory_mb": memory(name, shape, mode, options)}
        returned = 0 if mode == "forward" else case.hidden.nbytes + case.weight.nbytes
        rows.append(row | {"beyond_mb": max(0.0, row["memory_mb"] - returned / 1e6)})
    return rows


def memory(name: str, shape: tuple[int, int, int], mode: str, options: argparse.Namespace) -> float:
    """MB beyond the inputs at the height of a run."""
    if options.device == "cuda":
        return height(name, shape, mode, options)
    asked = ["--height", name, "--shapes", "x".join(map(str, shape)), "--modes", mode]
    asked += ["--dtype", options.dtype, "--device", "cpu", "--threads", str(options.threads)]
    line = [sys.executable, __file__, *asked]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def height(name: str, shape: tuple[int, int, int], mode: str, options: argparse.Namespace) -> float:
    """The same, in this process."""
    loss = PROVIDERS[name]()
    if options.device == "cuda":
        case = make_case(shape, options.dtype, "cuda")
        case.run(loss, mode)()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        case.run(loss, mode)()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    make_case(SMALL, options.dtype, "cpu").run(loss, mode)()  # libraries are loaded
    case = make_case(shape, options.dtype, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the height counts from here
    at_rest = resident("VmRSS")
    case.run(loss, mode)()
    return resident("VmHWM") - at_rest


def resident(field: str) -> float:
    """A figure of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Where, when and with what."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    device = torch.cuda.get_device_name() if options.device == "cuda" else machine()["cpu"]
    date = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"device": device, "date": date, "dtype": options.dtype, "threads": options.threads}
    said |= {"repeat": options.repeat, "versions": versions, "interpreted": INTERPRETED}
    return said | {"machine": machine()}


def render(found: dict[str, Any]) -> str:
    """What was measured, as a table; who was not stands at its end."""
    lines: list[tuple[str, ...]] = []
    for row in found["results"]:
        spread = f"{row['p50']:.1f} ({row['p20']:.1f} to {row['p80']:.1f})"
        shape = "x".join(map(str, row["shape"]))
        size = f"{row['memory_mb']:.0f}", f"{row['beyond_mb']:.0f}"
        off = f"{row['loss_error']:.0e}", f"{row['gradient_error']:.0e}"
        lines.append((row["provider"], shape, row["mode"], spread, *size, *off))
    for name, why in found["missing"].items():
        lines.append((name, "", "", f"not measured: {why}", "", "", "", ""))
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    said = [
        f"{found['device']}, {found['dtype']}, {found['threads']} threads, {found['date']}; "
        f"{found['repeat']} runs each in turns, load {found['machine']['load']:.1f} at the start",
        versions + ", interpreted" * found["interpreted"],
    ]
    sizes, errors = ("memory, MB", "beyond gradients"), ("error of the loss", "of gradients")
    return "\n".join(
        [
            *(f"- {line}" for line in said),
            "",
            table(("loss", "shape", "mode", "ms", *sizes, *errors), lines),
        ]
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--shapes", nargs="+", help="tokens x width x vocabulary, as 512x256x50257")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--only", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--repeat", type=int, default=5, help="runs of each")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--out", type=Path, help="a file of JSON")
    parser.add_argument("--height", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    texts = options.shapes or SHAPES[options.device]
    try:
        options.shapes = [tuple(int(size) for size in text.split("x")) for text in texts]
    except ValueError:
        parser.error("a shape is tokens x width x vocabulary, as 512x256x50257")
    if any(len(shape) != 3 or min(shape) < 1 for shape in options.shapes):
        parser.error("a shape is three numbers above 0")
    return options


def main() -> None:
    options = read_options()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # of what torch.compile makes
    torch.set_num_threads(options.threads)
    if options.height:
        print(height(options.height, options.shapes[0], options.modes[0], options))
        return
    found = about(options)
    losses, errors, found["missing"] = usable(options.only, options)
    found["results"] = [
        row | {"gradient_error": errors[row["provider"]]}
        for shape in options.shapes
        for row in measure(losses, shape, options)
    ]
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(render(found))


if __name__ == "__main__":
    main()
