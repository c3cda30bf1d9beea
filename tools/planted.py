"""Every method on one planted problem whose best mix is known: the bias of each.

    python tools/planted.py OUT
    python tools/planted.py OUT --methods doremi regression --steps 40

Four domains of Markov chains, each over words of its own, so that none helps another. In `easy` and
`noise` there is little to learn: eight words, each followed by one, or by any. `large` and `small`
have 64 words, each followed by three, and take most of what a small model is trained on. They
differ in size and in their tables alone: the best mix has as much of one as of the other. The rest
of it is found by trying: a grid of such mixes, then steps from neighbour to neighbour, each mix a
real training. Best is the lowest mean of bits per byte over the four holdouts. Mixes are then
compared by models of other seeds than the search's.

Prints a table in markdown, and writes OUT/planted.json. Runs are kept in OUT, and not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mixc.recipe import load
from mixc.registry import METHODS
from mixc.rng import Stream
from mixc.solve.check import paired
from mixc.solve.doubts import total_variation
from mixc.solve.lab import Lab
from mixc.solve.problem import Solution
from mixc.solve.stage import make_problem, run_method
from mixc.tokenize.stage import tokenize

Real = NDArray[np.float64]

DOCUMENT = 64  # words
GRID, STEPS = 6, (1 / 12, 1 / 24)  # parts of the grid's edge, and the steps from its best
NEAR = 0.05  # total variation within which an answer is the best mix
SEARCHED, COMPARED = (0, 1), (101, 102, 103)  # seeds of models


@dataclass(frozen=True)
class Chain:
    """A domain: its words, how many of them may follow each, all alike likely, its documents."""

    words: int
    successors: int
    documents: int


CHAINS = {
    "easy": Chain(8, 1, 300),
    "large": Chain(64, 3, 900),
    "noise": Chain(8, 8, 900),
    "small": Chain(64, 3, 225),
}


def documents(name: str, seed: int) -> list[str]:
    """The texts of a domain."""
    chain, stream = CHAINS[name], Stream(seed, "planted", name)
    follows = np.stack(
        [
            Stream(seed, "follows", name, word).permutation(chain.words)[: chain.successors]
            for word in range(chain.words)
        ]
    )
    lots = stream.uniforms(chain.documents * DOCUMENT).reshape(DOCUMENT, chain.documents)
    words = [(lots[0] * chain.words).astype(np.int64)]
    for lot in lots[1:]:
        words.append(follows[words[-1], (lot * chain.successors).astype(np.int64)])
    return [" ".join(f"{name}{one}" for one in row) for row in np.stack(words, axis=1).tolist()]


def write_recipe(out: Path, steps: int) -> Path:
    """Write corpora, tokenizer and recipe into a folder; the recipe's path."""
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for name in CHAINS:
        lines = (json.dumps({"text": text}) + "\n" for text in documents(name, seed=1))
        (out / "corpus" / f"{name}.jsonl").write_text("".join(lines))
    ends = "<|endoftext|>"
    words = [ends, *(f"{name}{word}" for name, one in CHAINS.items() for word in range(one.words))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": ends, "special": True, **flags}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": ends,
        },
    }
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    proxy = {"steps": steps, "batch_tokens": 256, "seq_len": 32, "device": "cpu"}
    recipe = {
        "name": "planted",
        "workdir": "out",
        "tokenizer": {"path": "tokenizer.json", "engine": "tokenizers"},
        "domains": {name: {"paths": [f"corpus/{name}.jsonl"]} for name in CHAINS},
        "holdout": {"fraction": 0.1},
        "mixture": {"rows": 1000, "seq_len": 32, "formats": ["nanogpt"]},
        "solve": {"method": "natural", "proxy": proxy, "check": False},
        "seed": 0,
    }
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def mix_of(easy: float, noise: float) -> Real:
    """Weights with as much of `large` as of `small`, float64[4] in the order of CHAINS."""
    pair = (1 - easy - noise) / 2
    return np.array([easy, pair, noise, pair])


def find_best(loss: Callable[[Real], float]) -> Real:
    """The mix of lowest loss: the grid's best, then downhill in ever smaller steps."""
    points = [(i / GRID, j / GRID) for i in range(GRID) for j in range(GRID - i)]
    seen = {point: loss(mix_of(*point)) for point in points}
    for step in STEPS:
        here = None
        while here != (here := min(seen, key=lambda point: seen[point])):
            for a, b in ((1, 0), (0, 1), (1, -1), (-1, 0), (0, -1), (-1, 1)):
                point = (here[0] + a * step, here[1] + b * step)
                if min(*point, 1 - sum(point)) > -1e-9 and not _known(point, seen):
                    seen[point] = loss(mix_of(*point))
    return mix_of(*min(seen, key=lambda point: seen[point]))


def _known(point: tuple[float, float], seen: dict[tuple[float, float], float]) -> bool:
    return any(abs(point[0] - a) + abs(point[1] - b) < 1e-9 for a, b in seen)


def towards(weights: Real, best: Real, natural: Real) -> str:
    """Which simple mix, or domain alone, `weights` lean to from `best`.

    Of those that are no less far from `best`, or little, the nearest in direction (by the cosine).
    """
    moved, far = weights - best, total_variation(weights, best)
    if far <= NEAR:
        return "none to speak of"
    ends = {"natural": natural, "uniform": np.full(len(best), 1 / len(best))}
    ends |= dict(zip(CHAINS, np.eye(len(best)), strict=True))
    cosines = {
        name: moved @ (end - best) / np.linalg.norm(end - best)
        for name, end in ends.items()
        if total_variation(end, best) > 0.8 * far
    }
    return "towards " + max(cosines, key=lambda name: cosines[name])


def measure(out: Path, steps: int, methods: Sequence[str]) -> dict[str, Any]:
    """Find the best mix, run every method, and compare them all."""
    path = write_recipe(out, steps)
    recipe = load(path)
    store = tokenize(recipe, workers=1)
    problem = make_problem(recipe, store, out / "staging")
    tried: list[Real] = []

    def try_out(mix: Real) -> float:
        tried.append(mix)
        return float(losses(problem.lab, Solution.exact(mix), SEARCHED).mean())

    best = find_best(try_out)
    natural = problem.tokens / problem.tokens.sum()
    least = losses(problem.lab, Solution.exact(best), COMPARED)
    rows = [_row("best", Solution.exact(best), best, natural, least - least)]
    for name in methods:
        mine = load(path, [f"solve.method={name}"])
        assert mine.solve is not None
        given = make_problem(mine, store, out / "staging" / name)
        found = run_method(name, given, mine.solve.options)
        each = losses(problem.lab, found, COMPARED)
        rows.append(_row(name, found, best, natural, each - least))
    about = {"domains": list(problem.domains), "steps": steps, "tried": len(tried)}
    return {**about, "bits_per_byte": float(least.mean()), "rows": rows}


def losses(lab: Lab, found: Solution, seeds: Sequence[int]) -> Real:
    """Mean bits per byte of models trained on a solution, float64[S]."""
    runs = [lab.run_mix(found.weights, seed=seed, schedule=found.schedule) for seed in seeds]
    return np.array([run.bits_per_byte.mean() for run in runs])


def _row(name: str, found: Solution, best: Real, natural: Real, excess: Real) -> dict[str, Any]:
    inside = (found.low - 0.01 <= best) & (best <= found.high + 0.01)
    difference = paired(excess)
    return {
        "mix": name,
        "weights": found.weights.tolist(),
        "low": found.low.tolist(),
        "high": found.high.tolist(),
        "distance": total_variation(found.weights, best),
        "excess": [difference.mean, difference.low, difference.high],
        "interval_holds_best": bool(inside.all()),
        "bias": towards(found.weights, best, natural) if name != "best" else "",
    }


def render(found: dict[str, Any]) -> str:
    """The table, in markdown: the nearest to the best mix first."""
    head = ["mix", *found["domains"], "distance", "excess, bits per byte", "bias"]
    lines = [head, ["---"] * len(head)]
    for row in sorted(found["rows"], key=lambda row: row["distance"]):
        mean, low, high = row["excess"]
        excess = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" if low < high else f"{mean:+.4f}"
        weights = [f"{weight:.2f}" for weight in row["weights"]]
        lines.append([row["mix"], *weights, f"{row['distance']:.2f}", excess, row["bias"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder for corpora, runs and planted.json")
    parser.add_argument("--steps", type=int, default=80, help="training steps of a model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    given = parser.parse_args()
    found = measure(given.out, given.steps, given.methods)
    (given.out / "planted.json").write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))


if __name__ == "__main__":
    main()
