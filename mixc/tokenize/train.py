"""A byte-level BPE tokenizer trained on a deterministic sample of the recipe's own domains."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from mixc import progress
from mixc.tokenize.inputs import Input
from mixc.tokenize.reading import head
from mixc.tokenize.rules import Rules

EOT = "<|endoftext|>"


def train(
    inputs: Sequence[Input],
    rules: Mapping[str, Rules],
    *,
    vocab_size: int,
    sample_bytes: int,
) -> bytes:
    """Train on about `sample_bytes` of text and return the tokenizer.json.

    Each domain gives the same share, each of its files in proportion to its size, from its
    start: what is read depends on the inputs alone, and little more is read than is used.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with progress.task("train tokenizer", sample_bytes, "B") as task:
        texts = _sample(inputs, rules, sample_bytes)
        tokenizer.train_from_iterator(_counted(texts, task), trainer)
    return tokenizer.to_str(pretty=False).encode()


def _counted(texts: Iterator[str], task: progress.Task) -> Iterator[str]:
    for text in texts:
        task.advance(len(text.encode(errors="replace")))
        yield text


def _sample(
    inputs: Sequence[Input], rules: Mapping[str, Rules], sample_bytes: int
) -> Iterator[str]:
    sizes: dict[str, int] = {}
    for item in inputs:
        sizes[item.domain] = sizes.get(item.domain, 0) + item.bytes
    for item in inputs:
        share = item.bytes / max(sizes[item.domain], 1) / len(sizes)
        yield from head(item, rules[item.domain], round(share * sample_bytes))
