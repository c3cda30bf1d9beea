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
from mixc.solve.problem import DocumentShares
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


# Values [B, L - 1], one a predicted token, of tokens int64[B, L], in the store's ids.
Measure = Callable[[Tokens], NDArray[np.float32]]


@dataclass(frozen=True)
class Chosen:
    """n texts to weigh, by domain, then id.

    `ids` uint64[n]; `domain` int64[n]; `lengths` int64[n] in tokens; `share` float64[n], of all
    training tokens, what each stands for, which sums to 1.
    """

    ids: NDArray[np.uint64]
    domain: Index
    lengths: Index
    share: Real

    def only(self, domains: NDArray[np.bool_]) -> Chosen:
        """Those of some domains, bool[K], alone."""
        kept = domains[self.domain]
        share = self.share[kept] / self.share[kept].sum()
        return Chosen(self.ids[kept], self.domain[kept], self.lengths[kept], share)


def choose(lab: Lab, most: int | None) -> Chosen:
    """The training documents of every domain, a text that is there twice once.

    With `most`, only so many of a domain, those of smallest hashes: each stands for more.
    """
    columns = []
    for number, name in enumerate(lab.domains):
        every, lengths = _training(lab.store, name)
        ids, first, place = np.unique(every, return_index=True, return_inverse=True)
        tokens, length = np.bincount(place, weights=lengths, minlength=len(ids)), lengths[first]
        total = tokens.sum()
        if most is not None and len(ids) > most:
            drawn = np.sort(
                np.argsort(Stream(lab.seed, "score", str(lab.names[name])).hash(ids))[:most]
            )
            ids, tokens, length = ids[drawn], tokens[drawn], length[drawn]
        share = tokens * (total / max(tokens.sum(), 1))
        columns.append((ids, np.full(len(ids), number), length, share))
    ids, domain, length, share = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Chosen(ids, domain, length, share / share.sum())


def about_tokens(lab: Lab, most: int | None) -> int:
    """About how many tokens `choose` chooses, by the domains' counts: no document is read."""
    tokens = 0.0
    for domain in map(lab.store.domains.__getitem__, lab.domains):
        free = domain.documents - domain.held_documents
        part = 1.0 if most is None or free <= most else most / free
        tokens += part * domain.training_tokens
    return round(tokens)


def score(lab: Lab, chosen: Chosen, measure: Measure) -> Real:
    """The mean value of each document's tokens, its end of text included, float64[n].

    Each is seen by itself, after an end of text; those longer than a row in windows that overlap
    by a token.
    """
    scores = np.zeros(len(chosen.ids))
    with progress.task("score documents", len(scores), "documents") as bar:
        for number, name in enumerate(lab.domains):
            mine = np.flatnonzero(chosen.domain == number)
            wanted = chosen.ids[mine]
            for documents in lab.store.documents(name):
                found = np.flatnonzero(holdout.among(documents.doc_id, wanted))
                some, first = np.unique(documents.doc_id[found], return_index=True)
                picked = documents.select(found[first])
                wanted = wanted[~holdout.among(wanted, some)]
                place = mine[np.searchsorted(chosen.ids[mine], some)]
                for window, values in _measured(lab, picked, measure):
                    np.add.at(scores, place[window], values)
                scores[place] /= picked.lengths
                bar.advance(len(place))
    return scores


def _training(store: Store, name: str) -> tuple[NDArray[np.uint64], Index]:
    """Ids and lengths of the documents that mixtures may use."""
    ids, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for documents in store.documents(name):
        free = ~holdout.among(documents.doc_id, store.all_held_ids)
        ids.append(documents.doc_id[free])
        lengths.append(documents.lengths[free])
    return np.concatenate(ids), np.concatenate(lengths)


def _measured(lab: Lab, documents: Documents, measure: Measure) -> Iterator[tuple[Index, Real]]:
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


def domain_weights(chosen: Chosen, multiple: Real, domains: int) -> tuple[Real, Real, Real]:
    """The domains' shares of what is drawn, float64[K], and a 95% interval: low and high.

    By the delta method, with documents as drawn at random from their domain.
    """
    weights = np.bincount(chosen.domain, weights=chosen.share * multiple, minlength=domains)
    natural = np.bincount(chosen.domain, weights=chosen.share, minlength=domains)
    mean = weights / np.where(natural > 0, natural, 1)
    off = (chosen.share * (multiple - mean[chosen.domain])) ** 2
    variance = np.bincount(chosen.domain, weights=off, minlength=domains)
    total = weights.sum()
    weights, variance = weights / total, variance / total**2
    spread = (1 - weights) ** 2 * variance + weights**2 * (variance.sum() - variance)
    half = _NORMAL_95 * np.sqrt(spread)
    return weights, np.maximum(weights - half, 0), np.minimum(weights + half, 1)


def by_domain(chosen: Chosen, score: Real, multiple: Real, domains: int) -> dict[str, Real]:
    """What there is to tell of each domain, float64[1, K] each; NaN of one without documents.

    `document_score`, its mean; `largest_multiple` of a document's share; `effective_share`,
    Kish's effective number of its documents, of their number.
    """
    found = np.full((3, domains), np.nan)
    for domain in np.unique(chosen.domain):
        mine = chosen.domain == domain
        share, m = chosen.share[mine] / chosen.share[mine].sum(), multiple[mine]
        drawn = float((share * m).sum())
        effective_share = effective(share, m / drawn) / len(share) if drawn else 0.0
        found[:, domain] = (share * score[mine]).sum(), m.max(), effective_share
    names = ("document_score", "largest_multiple", "effective_share")
    return {name: values[None] for name, values in zip(names, found, strict=True)}


def shares_of(chosen: Chosen, multiple: Real) -> DocumentShares:
    """How often documents appear; a text that several domains hold once, as the first has it."""
    ids, first = np.unique(chosen.ids, return_index=True)
    return DocumentShares(ids, multiple[first])


def free_energy(share: Real, loss: Real, temperature: float) -> float:
    """max over w of sum w loss - temperature KL(w, share): what `tilt` without a cap comes to."""
    return temperature * log_sum_exp(np.log(share) + loss / temperature)
