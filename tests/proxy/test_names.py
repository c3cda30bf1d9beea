"""What small models tell domains apart by."""

from build_helpers import make_store, random_corpus

from mixc.proxy.names import names_of, order_of

CORPUS = random_corpus(3, {"a": (12, 9), "b": (12, 9)})


def test_a_domain_is_named_by_its_documents(tmp_path):
    plain = names_of(make_store(tmp_path / "plain", CORPUS))
    other = names_of(make_store(tmp_path / "other", {"b": CORPUS["a"], "a": CORPUS["b"]}))
    assert (other["b"], other["a"]) == (plain["a"], plain["b"])
    assert order_of(other).tolist() == order_of(plain).tolist()[::-1]
    more = CORPUS | {"a": CORPUS["a"] + CORPUS["b"][:1]}
    assert names_of(make_store(tmp_path / "more", more))["a"] != plain["a"]


def test_copies_have_names_of_their_own(tmp_path):
    names = names_of(make_store(tmp_path, {"a": CORPUS["a"], "b": CORPUS["b"], "c": CORPUS["a"]}))
    assert names["a"].documents == names["c"].documents != names["b"].documents
    assert (names["a"].copy, names["b"].copy, names["c"].copy) == (0, 0, 1)
    order = order_of(names).tolist()
    assert order.index(2) == order.index(0) + 1
