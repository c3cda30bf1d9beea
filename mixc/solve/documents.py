"""Weights of documents: what a small model says of each, and weights tilted by it.

A document is given a multiple m of its natural share, so that the mean of m over all training
tokens is 1: how often it appears in an epoch. The domains' weights are the shares that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixc import progress
from mixc.rng import Stream
from mixc.solve.mirror import log_sum_exp
from mixc.store import holdout
from mixc.store.shard import Documents
from mixc.store.store import Store

if TYPE_CHECKING:
    from mixc.solve.lab import Lab

Real = NDArray[np.float64]
Index = NDArray[np.int64]
Tokens = NDArray[np.int64]

_BATCH_TOKENS = 16_384
_NORMAL_95 = 1.959964  # half the width of a normal distribution's middle 95%


@dataclass(frozen=True)
class Scores:
    """Documents and their scores, one each of n texts.

    `ids` uint64[n]; `domain` int64[n]; `share` float64[n], of all training tokens, what the
    document stands for, which sums to 1; `score` float64[n], the mean over its tokens.
    """

    ids: NDArray[np.uint64]
    domain: Index
    share: Real
    score: Real


def score(lab: Lab, measure: Callable[[Tokens], NDArray[np.float32]], most: int | None) -> Scores:
    """Score the training documents of every domain, each by itself, its end of text included.

    `measure` gives values [B, L - 1] for tokens int64[B, L], one a predicted token. Documents
    longer than a row are cut into windows that overlap by a token. With `most`, only that many
    documents of a domain are scored, those of smallest hashes, and each stands for more.
    """
    parts = [_score_domain(lab, number, measure, most) for number in range(len(lab.domains))]
    ids, domain, share, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    # A text that two domains hold has one score; it is told by the first.
    return Scores(ids, domain, share / share.sum(), value)


def _score_domain(
    lab: Lab, number: int, measure: Callable[[Tokens], NDArray[np.float32]], most: int | None
) -> tuple[NDArray[np.uint64], Index, Real, Real]:
    """Ids, domain, tokens that they stand for, and scores of a domain's documents."""
    name = lab.domains[number]
    ids, tokens = _training(lab.store, name)
    ids, first, copies = np.unique(ids, return_index=True, return_counts=True)
    tokens, total = tokens[first] * copies, tokens.sum()
    if most is not None and len(ids) > most:
        drawn = np.sort(np.argsort(Stream(lab.seed, "score", name).hash(ids))[:most])
        ids, tokens = ids[drawn], tokens[drawn]
    sums, lengths = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
    with progress.task(f"score {name}", int(tokens.sum()), "tokens") as bar:
        for documents in lab.store.documents(name):
            wanted = np.flatnonzero(np.isin(documents.doc_id, ids))
            place = np.searchsorted(ids, documents.doc_id[wanted])
            place, once = np.unique(place, return_index=True)
            new = lengths[place] == 0
            chosen, place = documents.select(wanted[once][new]), place[new]
            for window, values in _measured(lab, chosen, measure):
                np.add.at(sums, place[window], values)
                bar.advance(len(values))
            lengths[place] = chosen.lengths
    share = tokens * (total / max(tokens.sum(), 1))
    return ids, np.full(len(ids), number), share, sums / np.maximum(lengths, 1)


def _training(store: Store, name: str) -> tuple[NDArray[np.uint64], Index]:
    """Ids and lengths of the documents that mixtures may use."""
    ids, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for documents in store.documents(name):
        free = ~holdout.among(documents.doc_id, store.all_held_ids)
        ids.append(documents.doc_id[free])
        lengths.append(documents.lengths[free])
    return np.concatenate(ids), np.concatenate(lengths)


def _measured(
    lab: Lab, documents: Documents, measure: Callable[[Tokens], NDArray[np.float32]]
) -> Iterator[tuple[Index, Real]]:
    """For batches of windows: each predicted token's document, and its value."""
    room, eot = lab.options.seq_len - 1, lab.store.eot_id
    count = -(-documents.lengths // room)
    owner = np.repeat(np.arange(len(documents)), count)
    begin = room * (np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count))
    length = np.minimum(documents.lengths[owner] - begin, room)
    order = np.argsort(-length, kind="stable")
    rows = max(1, _BATCH_TOKENS // room)
    for some in (order[i : i + rows] for i in range(0, len(order), rows)):
        tokens = np.full((len(some), length[some[0]] + 1), eot, np.int64)
        for row, window in enumerate(some):
            at = documents.offsets[owner[window]] + begin[window]
            before = int(begin[window] > 0)  # an end of text stands before the first
            piece = documents.tokens[at - before : at + length[window]]
            tokens[row, 1 - before : 1 - before + len(piece)] = piece
        real = np.arange(tokens.shape[1] - 1) < length[some][:, None]
        yield np.repeat(owner[some], length[some]), measure(tokens)[real].astype(np.float64)


def tilt(share: Real, gain: Real, largest: float) -> Real:
    """Multiples m float64[n] <= `largest` of shares that maximise sum w gain - KL(w, share).

    w = share m lies on the simplex as `share` does: m ~ exp(gain) but where that is cut, with what
    is cut spread over the rest. `largest` >= 1.
    """
    order = np.argsort(-gain, kind="stable")
    raised = np.log(np.maximum(share[order], np.finfo(np.float64).tiny)) + gain[order]
    rest = np.logaddexp.accumulate(raised[::-1])[::-1]  # of this and all below
    above = np.concatenate([[0.0], np.cumsum(share[order])[:-1]])
    left = np.maximum(1 - largest * above, 0)
    with np.errstate(divide="ignore"):
        first = np.log(left) + gain[order] - rest  # log m of each, were all above it cut
    cut = int(np.argmax(first <= np.log(largest) + 1e-12))
    multiple = np.empty(len(share))
    multiple[order[:cut]] = largest
    multiple[order[cut:]] = left[cut] * np.exp(gain[order[cut:]] - rest[cut])
    return multiple


def effective(share: Real, multiple: Real) -> float:
    """The effective number of documents, Kish's: n / sum(share m^2); n where all m are 1."""
    return float(len(share) / (share * multiple**2).sum())


def domain_weights(scores: Scores, multiple: Real, domains: int) -> tuple[Real, Real, Real]:
    """The domains' shares of what is drawn, float64[K], and a 95% interval: low and high.

    By the delta method, with documents as drawn at random from their domain.
    """
    weights = np.bincount(scores.domain, weights=scores.share * multiple, minlength=domains)
    natural = np.bincount(scores.domain, weights=scores.share, minlength=domains)
    mean = weights / np.where(natural > 0, natural, 1)
    off = (scores.share * (multiple - mean[scores.domain])) ** 2
    variance = np.bincount(scores.domain, weights=off, minlength=domains)
    total = weights.sum()
    weights, variance = weights / total, variance / total**2
    spread = (1 - weights) ** 2 * variance + weights**2 * (variance.sum() - variance)
    half = _NORMAL_95 * np.sqrt(spread)
    return weights, np.maximum(weights - half, 0), np.minimum(weights + half, 1)


def free_energy(share: Real, loss: Real, temperature: float) -> float:
    """max over w of sum w loss - temperature KL(w, share): what `tilt` without a cap comes to."""
    return temperature * log_sum_exp(np.log(share) + loss / temperature)
