"""What names a domain's random streams in a solve."""

from build_helpers import make_store, random_corpus

from mixc.solve.names import names_of, order_of

CORPUS = random_corpus(3, {"a": (12, 9), "b": (12, 9)})


def test_a_domain_is_named_by_its_documents(tmp_path):
    plain = names_of(make_store(tmp_path / "plain", CORPUS))
    other = names_of(make_store(tmp_path / "other", {"b": CORPUS["a"], "z": CORPUS["b"]}))
    assert (other["b"], other["z"]) == (plain["a"], plain["b"])
    assert order_of(other).tolist() == order_of(plain).tolist()
    more = CORPUS | {"a": CORPUS["a"] + CORPUS["b"][:1]}
    assert names_of(make_store(tmp_path / "more", more))["a"] != plain["a"]


def test_copies_have_names_of_their_own(tmp_path):
    names = names_of(make_store(tmp_path, {"a": CORPUS["a"], "b": CORPUS["a"], "c": CORPUS["b"]}))
    assert len(set(names.values())) == 3
    assert sorted(order_of(names).tolist()) == [0, 1, 2]
