"""The ten-domain experiment: every method on real text, held against the simple mixes.

    python tools/experiment.py CORPUS OUT
    python tools/experiment.py CORPUS OUT --steps 2000 --methods doremi doge regression

CORPUS holds a folder of jsonl.zst a domain, with a `text` a record. Ten domains are made of it:
code, markup, books, proofs and documentation; among them one that is noise, one that is a copy of
another, and a language, `docs-ru`, that a second league keeps out of training and asks for alone.
Each method solves for weights; all answers and the simple mixes then meet in `mixc compare`, with
equal seeds. What is there is not made again. Prints tables in markdown, writes OUT/experiment.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
import zstandard
from bench.measure import machine
from bench.tables import table

# Megabytes of text of each domain: uneven, as corpora are.
SIZES = {
    "c": ("code_c", 6.0),
    "python": ("code_python", 8.0),
    "html": ("html_raw", 8.0),
    "literature": ("literature", 5.0),
    "math": ("formal_math", 4.0),
    "docs-en": ("docs_en", 3.0),
    "docs-en-copy": ("docs_en", 3.0),
    "docs-de": ("docs_de", 4.0),
    "docs-ru": ("docs_ru", 3.0),
    "noise": ("", 4.0),
}
SIMPLE = ("natural", "uniform", "unimax")
LANGUAGE = "docs-ru"
# Methods that take a target of their own, and the option that names it.
TARGETED = {"doge": "target", "mixmin": "target"}


def write_corpus(corpus: Path, out: Path) -> None:
    """A jsonl.zst file a domain, of so many bytes of text."""
    out.mkdir(parents=True, exist_ok=True)
    for name, (folder, megabytes) in SIZES.items():
        path = out / f"{name}.jsonl.zst"
        if path.exists():
            continue
        texts = _texts(corpus / folder) if folder else _noise()
        lines, size = [], 0
        for text in texts:
            lines.append(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            if size >= megabytes * 1e6:
                break
        path.write_bytes(zstandard.compress("".join(lines).encode()))


def _texts(folder: Path) -> Any:
    for path in sorted(folder.glob("*.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def _noise() -> Any:
    """Words of random letters: nothing about them can be learnt but which letters there are."""
    draw = random.Random(0)
    while True:
        words = (
            "".join(draw.choices(string.ascii_letters, k=draw.randint(1, 12))) for _ in "." * 300
        )
        yield " ".join(words)


def recipe(arguments: argparse.Namespace) -> dict[str, Any]:
    """The experiment's recipe; a method and its options are set on the command line."""
    proxy = {
        "preset": arguments.preset,
        "steps": arguments.steps,
        "batch_tokens": arguments.batch_tokens,
        "seq_len": 256,
    }
    runs = arguments.runs  # the same mixes for both, trained once
    return {
        "name": "experiment",
        "workdir": "work",
        "tokenizer": {"train": {"vocab_size": arguments.vocab, "sample_bytes": "10M"}},
        "domains": {name: {"paths": [f"corpus/{name}.jsonl.zst"]} for name in SIZES},
        "holdout": {"fraction": 0.05, "max_tokens": arguments.holdout},
        "solve": {
            "method": "natural",
            "proxy": proxy,
            "check": False,
            "regression": {"runs": runs},
            "mixing_law": {"runs": runs},
            "aioli": {"rounds": 2, "sweeps": 1},
            "ir_dro": {"most_documents": arguments.documents},
        },
        "mixture": {"weights": "solved", "tokens": "10M", "seq_len": 1024, "formats": ["nanogpt"]},
        "seed": 0,
    }


def mixc(*words: object) -> dict[str, Any]:
    """What a command says."""
    line = [sys.executable, "-m", "mixc", *map(str, words), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout}")
    return dict(json.loads(done.stdout))


def solve(out: Path, name: str, words: Sequence[str]) -> dict[str, Any]:
    """The answer of a method, kept as `weights/<name>.json`, beside what it took."""
    path = out / "weights" / f"{name}.json"
    if not path.exists():
        start = time.perf_counter()
        settings = [part for word in words for part in ("-s", word)]
        answer = mixc("solve-weights", out / "recipe.yaml", *settings)
        seconds = time.perf_counter() - start
        kept = {"answer": answer, "seconds": seconds}
        (path.parent / f"{name}.full.json").write_text(json.dumps(kept))
        shutil.copy(answer["path"], path)
    return dict(json.loads((path.parent / f"{name}.full.json").read_text()))


def league(out: Path, mixes: Sequence[str], seeds: int) -> dict[str, Any]:
    """`mixc compare` of mixes: words, or answers in `weights/`."""
    words: list[object] = []
    for name in mixes:
        words += ["--mix", name if name in SIMPLE else out / "weights" / f"{name}.json"]
    found = mixc("compare", out / "recipe.yaml", *words, "--seeds", seeds)
    found["mixes"] = {
        name if name in SIMPLE else Path(name).stem: entry for name, entry in found["mixes"].items()
    }
    return found


def without_language(out: Path, found: Mapping[str, Any]) -> list[str]:
    """The simple mixes with none of the language, kept as weights."""
    names = []
    for name in SIMPLE:
        weights = dict(found["mixes"][name]["weights"])
        weights[LANGUAGE] = 0.0
        total = sum(weights.values())
        (out / "weights" / f"{name}-but-ru.json").write_text(
            json.dumps({domain: weight / total for domain, weight in weights.items()})
        )
        names.append(f"{name}-but-ru")
    return names


def show(found: Mapping[str, Any], costs: Mapping[str, float], by: str | None = None) -> str:
    """A league in markdown; `by` a domain, or by the mean."""
    rows = []
    for name, entry in found["mixes"].items():
        weights = entry["weights"]
        low, high = entry["low"], entry["high"]
        interval = "" if low is None or not entry["over_best"] else f"{low:+.4f} to {high:+.4f}"
        bits = entry["mean"] if by is None else entry["bits_per_byte"][by]
        pair = weights["docs-en"] + weights["docs-en-copy"]
        cells = [name, f"{bits:.4f}", interval, f"{entry['worst']:.3f} {entry['worst_domain']}"]
        cells += [f"{weights['noise']:.3f}", f"{pair:.3f}", f"{costs.get(name, 0):.0f} s"]
        rows.append(cells)
    rows.sort(key=lambda cells: float(cells[1]))
    head = ["mix", "bits/byte", "over the best", "worst", "noise", "docs-en twice", "solve"]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="*", default=None, help="default: all that train")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--holdout", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=33, help="mixes of the swarm")
    parser.add_argument("--documents", type=int, default=60, help="scored by ir_dro, a domain")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for every solve")
    arguments = parser.parse_args()
    out: Path = arguments.out
    write_corpus(arguments.corpus, out / "corpus")
    (out / "weights").mkdir(exist_ok=True)
    (out / "recipe.yaml").write_text(yaml.safe_dump(recipe(arguments), sort_keys=False))
    mixc("tokenize", out / "recipe.yaml")
    methods = arguments.methods if arguments.methods is not None else _training_methods()
    costs = {}
    for method in methods:
        words = [f"solve.method={method}", *arguments.set]
        costs[method] = solve(out, method, words)["seconds"]
    found = league(out, [*SIMPLE, *methods], arguments.seeds)
    print(show(found, costs))
    targeted = []
    for method in methods:
        if method in TARGETED:
            name = f"{method}-for-ru"
            words = [f"solve.method={method}", f"solve.{method}.{TARGETED[method]}=[{LANGUAGE}]"]
            costs[name] = solve(out, name, [*words, *arguments.set])["seconds"]
            targeted.append(name)
    language = league(out, [*without_language(out, found), *targeted], arguments.seeds)
    print(show(language, costs, LANGUAGE))
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
        "league": found,
        "language": language,
        "seconds": costs,
    }
    (out / "experiment.json").write_text(json.dumps(report, indent=1))


def _training_methods() -> list[str]:
    from mixc.registry import METHODS

    return [name for name, entry in METHODS.items() if entry.trains]


if __name__ == "__main__":
    main()
