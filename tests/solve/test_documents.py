"""Documents are chosen, scored and weighed; on a tiny store."""

from dataclasses import replace

import numpy as np
import pytest
from build_helpers import make_store, random_corpus

from mixc.recipe import Proxy
from mixc.solve.documents import Chosen, by_domain, choose, domain_weights, score, shares_of
from mixc.solve.lab import Lab
from mixc.solve.problem import DocumentShares, Solution
from mixc.solve.seeds import combine

SEQ_LEN = 16
CORPUS = random_corpus(3, {"code": (30, 25), "prose": (30, 40), "web": (20, 15)})
CORPUS["web"] += [CORPUS["code"][0], CORPUS["web"][1], CORPUS["web"][1]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab that writes nothing."""
    store = make_store(tmp_path_factory.mktemp("documents"), CORPUS)
    return Lab(store, Proxy(preset="nano", seq_len=SEQ_LEN, vocab="full", device="cpu"), seed=1)


def training(lab, name):
    """{id: (tokens, copies)} of the documents that mixtures may use."""
    found = {}
    for documents in lab.store.documents(name):
        for number, identity in enumerate(documents.doc_id.tolist()):
            if identity not in lab.store.all_held_ids:
                tokens = documents.tokens[documents.offsets[number] : documents.offsets[number + 1]]
                found[identity] = (tokens, found.get(identity, (None, 0))[1] + 1)
    return found


def test_each_text_is_chosen_once_with_the_share_of_all_its_copies(lab):
    chosen = choose(lab, None)
    assert chosen.share.sum() == pytest.approx(1)
    total = sum(domain.training_tokens for domain in lab.store.domains.values())
    for number, name in enumerate(lab.domains):
        mine, known = chosen.domain == number, training(lab, name)
        assert chosen.ids[mine].tolist() == sorted(known)
        for i in np.flatnonzero(mine):
            tokens, copies = known[int(chosen.ids[i])]
            assert chosen.lengths[i] == len(tokens)
            assert chosen.share[i] == pytest.approx(copies * len(tokens) / total)
    assert max(copies for _, copies in training(lab, "web").values()) == 3


def test_of_a_few_documents_each_stands_for_more(lab):
    few, every = choose(lab, 5), choose(lab, None)
    assert np.bincount(few.domain).tolist() == [5, 5, 5]
    assert set(few.ids.tolist()) < set(every.ids.tolist())
    for chosen in (few, every):
        natural = np.bincount(chosen.domain, weights=chosen.share)
        tokens = np.array([domain.training_tokens for domain in lab.store.domains.values()])
        assert natural == pytest.approx(tokens / tokens.sum())


def test_a_score_is_the_mean_over_a_documents_own_tokens(lab):
    # What stands before a token, a tenth of it: where a window begins anew shows.
    def measure(tokens):
        assert tokens.shape[1] <= SEQ_LEN
        assert tokens.size <= 16_384 + SEQ_LEN
        return (tokens[:, 1:] + tokens[:, :-1] / 1000).astype(np.float32)

    chosen = choose(lab, None)
    found = score(lab, chosen, measure)
    for i, identity in enumerate(chosen.ids.tolist()):
        tokens, _ = training(lab, lab.domains[chosen.domain[i]])[identity]
        before = np.concatenate([[lab.store.eot_id], tokens[:-1]])
        assert found[i] == pytest.approx(np.mean(tokens + before / 1000), rel=1e-5)
    assert chosen.lengths.max() > 2 * SEQ_LEN


def test_what_is_scored_can_be_a_part(lab):
    part = choose(lab, None).only(np.array([True, False, True]))
    assert set(part.domain.tolist()) == {0, 2}
    assert part.share.sum() == pytest.approx(1)
    assert (score(lab, part, lambda tokens: np.ones_like(tokens[:, 1:], np.float32)) == 1).all()


def test_domain_weights_and_their_intervals():
    rng = np.random.default_rng(0)
    domain = np.repeat([0, 1], 200)
    share = np.where(domain == 0, 0.7, 0.3) / 200

    def drawn():
        multiple = np.where(domain == 0, rng.gamma(2, 0.25, 400), rng.gamma(2, 1.0, 400))
        chosen = Chosen(np.arange(400, dtype=np.uint64), domain, np.ones(400, np.int64), share)
        return domain_weights(chosen, multiple, 2)

    truth = 0.3 * 2 / (0.7 * 0.5 + 0.3 * 2)
    held = 0
    for _ in range(400):
        weights, low, high = drawn()
        assert weights.sum() == pytest.approx(1)
        held += low[1] <= truth <= high[1]
    assert 0.91 < held / 400 < 0.98  # 95% intervals


def test_what_is_told_of_domains():
    domain, share = np.array([0, 0, 1, 1]), np.full(4, 0.25)
    chosen = Chosen(np.arange(4, dtype=np.uint64), domain, np.ones(4, np.int64), share)
    told = by_domain(chosen, np.array([1.0, 3.0, 2.0, 2.0]), np.array([0.0, 2.0, 1.0, 1.0]), 3)
    assert told["document_score"][0, :2].tolist() == [2, 2]
    assert told["largest_multiple"][0, :2].tolist() == [2, 1]
    assert told["effective_share"][0, :2].tolist() == [0.5, 1]
    assert all(np.isnan(values[0, 2]) for values in told.values())


def test_a_text_of_two_domains_has_one_weight():
    ids = np.array([7, 9, 3, 7], np.uint64)
    chosen = Chosen(ids, np.array([0, 0, 1, 1]), np.ones(4, np.int64), np.full(4, 0.25))
    found = shares_of(chosen, np.array([0.5, 1.0, 2.0, 0.5]))
    assert found.ids.tolist() == [3, 7, 9]
    assert found.weights.tolist() == [2.0, 0.5, 1.0]


def test_schedules_and_documents_are_averaged_too():
    weights = np.array([0.25, 0.75])
    one = Solution.exact(weights)
    first = replace(
        one,
        schedule=((0.5, weights), (1.0, weights[::-1])),
        documents=DocumentShares(np.array([1, 2], np.uint64), np.array([1.0, 3.0])),
    )
    second = replace(
        one,
        schedule=((0.5, weights[::-1]), (1.0, weights[::-1])),
        documents=DocumentShares(np.array([2, 5], np.uint64), np.array([1.0, 4.0])),
    )
    found = combine([first, second])
    assert [end for end, _ in found.schedule] == [0.5, 1.0]
    assert [stage.tolist() for _, stage in found.schedule] == [[0.5, 0.5], [0.75, 0.25]]
    assert found.documents.ids.tolist() == [1, 2, 5]
    assert found.documents.weights.tolist() == [1.0, 2.0, 4.0]
    assert combine([one, one]).schedule is None
    assert combine([one, one]).documents is None
