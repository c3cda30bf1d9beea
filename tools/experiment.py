"""The ten-domain experiment: every method on real text, held against the simple mixes.

    python tools/experiment.py CORPUS OUT
    python tools/experiment.py CORPUS OUT --steps 2000 --methods doremi doge regression --jobs 2

CORPUS holds a folder of jsonl.zst a domain, with a `text` a record. Ten domains are made of it:
code, markup, books, proofs and documentation; among them one that is noise, and one that is a copy
of another. The experiment has three parts, each in a folder of OUT:

- full: each method solves for weights; all answers and the simple mixes then train small models of
  equal seeds. A schedule is trained on as it changes; of weights of documents, the domains' that
  follow.
- single: the same solves without the copy, to hold what the pair gets against what the one gets.
- target: one domain, a language, is kept out of training, and its holdout alone is the score.
  Methods that take a target aim at it.

What is there is not made again, and what was killed goes on; `--jobs` parts run side by side.
Prints tables in markdown and what they say, and writes OUT/experiment.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import experiment_tables as tables
import numpy as np
import yaml
import zstandard
from bench.measure import machine
from experiment_tables import NOISE, PAIR, Answer

from mixc.pipeline import current_store, solve_weights
from mixc.recipe import load
from mixc.registry import METHODS
from mixc.solve import stage
from mixc.solve.check import Comparison, compare
from mixc.solve.problem import Weights
from mixc.solve.runs import MixRun
from mixc.solve.swarm import plan_swarm
from mixc.solve.weights import FILE, open_weights
from mixc.store import commit
from mixc.tokenize.stage import tokenize

# Where the text of each domain is, and how many megabytes of it: uneven, as corpora are.
DOMAINS = {
    "c": ("code_c", 6.0),
    "python": ("code_python", 8.0),
    "html": ("html_raw", 8.0),
    "literature": ("literature", 5.0),
    "math": ("formal_math", 4.0),
    "docs-en": ("docs_en", 3.0),
    "docs-en-copy": ("docs_en", 3.0),
    "docs-de": ("docs_de", 4.0),
    "docs-ru": ("docs_ru", 3.0),
    NOISE: ("", 4.0),
}
SIMPLE = [name for name, entry in METHODS.items() if not entry.trains]
TRAINING = [name for name, entry in METHODS.items() if entry.trains]
# Answers beside those of the methods as they are: settings of the recipe.
VARIANTS = {
    "tracin_we-documents": [
        "solve.method=tracin_we",
        "solve.tracin_we.weights=documents",
        "solve.tracin_we.checkpoints=1",
    ]
}
AIMED = ("doge", "tracin_we", "mixmin", "regression")  # methods that take a target


@dataclass(frozen=True)
class League:
    """A part's answers by name, and how they stood; None if no league was held."""

    answers: dict[str, Answer]
    found: Comparison | None = None


def write_corpus(corpus: Path, out: Path, size: float) -> None:
    """A jsonl.zst file a domain; `size` times its megabytes of text."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (folder, megabytes) in DOMAINS.items():
        path = out / f"{name}.jsonl.zst"
        if path.exists():
            continue
        lines, written = [], 0
        for text in _texts(corpus / folder) if folder else _noise():
            lines.append(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            if written >= megabytes * size * 1e6:
                break
        path.write_bytes(zstandard.compress("".join(lines).encode()))


def _texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def _noise() -> Iterator[str]:
    """Words of random letters: nothing about them can be learnt but which letters there are."""
    draw = random.Random(0)
    while True:
        words = (
            "".join(draw.choices(string.ascii_letters, k=draw.randint(1, 12))) for _ in range(300)
        )
        yield " ".join(words)


def prepare(arguments: argparse.Namespace, part: str, domains: Sequence[str]) -> Path:
    """A recipe of some of the domains, and its store; the recipe's path.

    The tokenizer is that of the first part, so that parts score the same tokens.
    """
    folder = arguments.out / part
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    path: Path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(arguments, part, domains), sort_keys=False))
    store = tokenize(load(path), workers=1)
    if part == "full":
        shutil.copy(store.root / "tokenizer.json", arguments.out)
    return path


def recipe(arguments: argparse.Namespace, part: str, domains: Sequence[str]) -> dict[str, Any]:
    """A part's recipe; a method and its options are set on top of it."""
    texts = set(domains) - {PAIR[1]}  # a copy is no domain of its own to a method
    runs = arguments.swarm * (len(texts) + 1)  # the same mixes for both, trained once
    train = {"train": {"vocab_size": arguments.vocab, "sample_bytes": "10M"}}
    return {
        "name": part,
        "workdir": "work",
        "tokenizer": train if part == "full" else {"path": "../tokenizer.json"},
        "domains": {name: {"paths": [f"../corpus/{name}.jsonl.zst"]} for name in domains},
        "holdout": {"fraction": 0.05, "max_tokens": arguments.holdout},
        "solve": {
            "method": "natural",
            "proxy": {
                "preset": arguments.preset,
                "steps": arguments.steps,
                "batch_tokens": arguments.batch_tokens,
                "seq_len": arguments.seq_len,
            },
            "check": False,
            "regression": {"runs": runs},
            "mixing_law": {"runs": runs},
            "aioli": {"rounds": 2, "sweeps": 1},
            "ir_dro": {"most_documents": arguments.documents},
            "tracin_we": {"most_documents": arguments.documents},
        },
        "mixture": {"weights": "solved", "tokens": "10M", "seq_len": 1024, "formats": ["nanogpt"]},
        "seed": 0,
    }


def solve(path: Path, name: str, settings: Sequence[str]) -> Answer:
    """The answer to a recipe under settings, kept as `weights/<name>.json`."""
    asked, kept = load(path, tuple(settings)), path.parent / "weights" / f"{name}.json"
    key = stage.weights_key(asked, current_store(asked))
    if not kept.exists() or open_weights(kept).manifest["key"] != key:
        shutil.copy(solve_weights(asked).path, kept)
    solved = open_weights(kept)
    runs = solved.manifest["cost"].get("plain_runs", 0.0)
    return Answer(solved.weights, solved.schedule, runs)


def solve_all(arguments: argparse.Namespace, path: Path) -> dict[str, Answer]:
    """The simple mixes and the answer of each method."""
    return {
        name: solve(path, name, VARIANTS.get(name, [f"solve.method={name}"]) + arguments.set)
        for name in [*SIMPLE, *arguments.methods]
    }


def compete(path: Path, answers: Mapping[str, Answer], seeds: int) -> Comparison:
    """Train the recipe's small model on every answer with every seed. Runs are kept."""
    asked = load(path)
    store = current_store(asked)
    with commit.reading(store.root), commit.locked(asked.workdir_path / FILE) as staging:
        problem = stage.make_problem(asked, store, staging / "compare")

        def ordered(weights: Mapping[str, float]) -> Weights:
            return np.array([weights.get(name, 0.0) for name in problem.domains])

        mixes = {name: ordered(answer.weights) for name, answer in answers.items()}

        def run(name: str, seed: int) -> MixRun:
            stages = tuple((until, ordered(mix)) for until, mix in answers[name].schedule) or None
            label = f"on {name}, seed {seed}"
            return problem.lab.run_mix(mixes[name], seed=seed, schedule=stages, label=label)

        return compare(mixes, problem.domains, range(seeds), run)


def full(arguments: argparse.Namespace) -> League:
    """All answers on the ten domains, in a league."""
    path = prepare(arguments, "full", tuple(DOMAINS))
    answers = solve_all(arguments, path)
    return League(answers, compete(path, answers, arguments.seeds))


def single(arguments: argparse.Namespace) -> League:
    """All answers where the copied domain stands alone."""
    path = prepare(arguments, "single", [name for name in DOMAINS if name != PAIR[1]])
    return League(solve_all(arguments, path))


def target(arguments: argparse.Namespace) -> League:
    """The answers for a target that is not trained on, in a league on its holdout."""
    aim = arguments.target
    path = prepare(arguments, "target", tuple(DOMAINS))
    others = [name for name in DOMAINS if name != aim]
    bare = prepare(arguments, "sources", others)
    answers = {name: solve(bare, name, [f"solve.method={name}"]) for name in tables.BASES}
    settings = {
        "doge": [f"solve.doge.target=[{aim}]"],
        "tracin_we": [f"solve.tracin_we.target=[{aim}]"],
        "mixmin": [f"solve.mixmin.target=[{aim}]", f"solve.mixmin.sources={json.dumps(others)}"],
    }
    for name in [one for one in settings if one in arguments.methods]:
        asked = [f"solve.method={name}", *settings[name], *arguments.set]
        answers[name] = solve(path, name, asked)
    if "regression" in arguments.methods:
        answers["regression"] = regress(arguments, path, bare, answers["natural"])
    found = compete(path, answers, arguments.seeds)
    return League(answers, tables.on(found, [aim]))


def regress(arguments: argparse.Namespace, path: Path, bare: Path, natural: Answer) -> Answer:
    """Regression of the target's loss on mixes of the other domains, which `bare` has alone.

    A recipe's own swarm trains on all its domains; so this one is made here, and read.
    """
    names, aim = list(natural.weights), arguments.target
    shares = np.array([natural.weights[name] for name in names])
    parts = plan_swarm(shares, arguments.swarm * (len(names) + 1), seed=0).tolist()
    swarm = {
        f"mix {number}": Answer(dict(zip(names, mix, strict=True)))
        for number, mix in enumerate(parts)
    }
    losses = tables.on(compete(path, swarm, 1), [aim]).bits[:, 0].tolist()
    for file, columns, rows in (("ratios", names, parts), ("metrics", [aim], losses)):
        with (bare.parent / f"{file}.csv").open("w", newline="") as lines:
            lined = csv.writer(lines)
            lined.writerow(["index", *columns])
            lined.writerows([number, *row] for number, row in enumerate(rows))
    settings = ["method=regression", f"regression.metric={aim}"]
    settings += [f"regression.{file}={file}.csv" for file in ("ratios", "metrics")]
    answer = solve(bare, "regression", [f"solve.{one}" for one in settings] + arguments.set)
    return replace(answer, plain_runs=len(parts))


PARTS: dict[str, Callable[[argparse.Namespace], League]] = {
    "full": full,
    "single": single,
    "target": target,
}


def show(leagues: Mapping[str, League]) -> str:
    """Tables and verdicts of the parts that were run."""
    said = []
    alone = leagues["single"].answers if "single" in leagues else {}
    if "full" in leagues and (found := leagues["full"].found) is not None:
        answers = leagues["full"].answers
        said += [tables.full_table(found, answers, alone)]
        said += [tables.verdicts(found, answers, alone, SIMPLE)]
    if "target" in leagues and (found := leagues["target"].found) is not None:
        solved = [name for name in found.names if name in AIMED]
        said += [tables.target_table(found, leagues["target"].answers)]
        said += [f"- {found.domains[0]}: {tables.verdict(found, solved)}"]
    return "\n\n".join(said)


def report(arguments: argparse.Namespace, leagues: Mapping[str, League]) -> dict[str, Any]:
    """All that was found, as plain data; bits per byte [seeds, domains] of each mix."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
        "parts": {
            part: {
                "answers": {name: asdict(one) for name, one in league.answers.items()},
                "domains": league.found and league.found.domains,
                "bits_per_byte": league.found
                and dict(zip(league.found.names, league.found.bits.tolist(), strict=True)),
            }
            for part, league in leagues.items()
        },
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    everything = [*TRAINING, *VARIANTS]
    parser.add_argument("--methods", nargs="*", default=everything, choices=everything)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    others = [name for name in DOMAINS if name not in PAIR]  # a copy would still be trained on
    parser.add_argument("--target", default="docs-ru", choices=others)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=540)
    parser.add_argument("--batch-tokens", type=int, default=320)
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--holdout", type=int, default=2000, help="tokens of a domain")
    parser.add_argument("--size", type=float, default=1.0, help="times the domains' sizes")
    parser.add_argument("--swarm", type=int, default=3, help="runs for each domain, and one more")
    parser.add_argument("--documents", type=int, default=8, help="documents scored of a domain")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="parts that run side by side")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every solve")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    write_corpus(arguments.corpus, arguments.out / "corpus", arguments.size)
    prepare(arguments, "full", tuple(DOMAINS))  # the others take its tokenizer
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        runs = {part: pool.submit(PARTS[part], arguments) for part in arguments.parts}
        leagues = {part: run.result() for part, run in runs.items()}
    (arguments.out / "experiment.json").write_text(json.dumps(report(arguments, leagues), indent=1))
    print(show(leagues))


if __name__ == "__main__":
    main()
