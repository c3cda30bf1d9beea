"""Recipes that are right, and what is read by users of wrong ones."""

from pathlib import Path

import pytest

from mixc import recipe
from mixc.errors import MixcError, MixcErrors

GOOD = """\
name: pile
tokenizer: {path: t.json}
domains:
  web: {paths: [web.jsonl]}
  code: {paths: [code/*.jsonl]}
mixture:
  weights: natural
  tokens: 1M
  seq_len: 8
  formats: [nanogpt]
seed: 1
"""
FULL = """\
name: quickstart
workdir: out/quickstart
tokenizer: {train: {vocab_size: 8192, sample_bytes: 20M}}
domains:
  python: {paths: [corpus/python/*.jsonl.zst, more/*.jsonl], format: jsonl, on_bad_record: skip}
  prose.en: {paths: ["corpus/prose/**/*.parquet"], text: body, max_document_bytes: 1M}
holdout: {fraction: 0.02, max_tokens: 200_000, also: ../old/store}
solve:
  method: doremi
  doremi: {variant: paper, eta: 1, smoothing: 1.0e-3, reference: uniform}
  unimax: {max_epochs: 2}
  proxy:
    {preset: micro, steps: 150, batch_tokens: 16k, seq_len: 256, learning_rate: 1e-3, device: cpu}
mixture:
  weights: solved
  tokens: 20M
  seq_len: 1024
  max_epochs: 4
  order: {shuffle_block: 1}
  formats: [nanogpt, megatron]
seed: 7
"""


def complaints(path: Path, *overrides: str) -> str:
    """What the user of a wrong recipe reads."""
    with pytest.raises((MixcError, MixcErrors)) as caught:
        recipe.load(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def snapshots(name):
    """Case -> (the lines of GOOD that change, what to, what the user reads)."""
    text = (Path(__file__).parents[1] / "snapshots/recipes" / name).read_text(encoding="utf-8")
    cases = {}
    for case in ("\n" + text).split("\n=== ")[1:]:
        change, _, expected = case.partition("\n\n")
        name, *lines = change.splitlines()
        old, new = ("".join(x[2:] + "\n" for x in lines if x[0] == sign) for sign in "-+")
        cases[name] = (old, new, expected.rstrip("\n"))
    return cases
