"""Which engine encodes, and what happens when one is wrong."""

import hashlib
import json

import numpy as np
import pytest
from helpers import identity, texts, tokenizer_json, word_tokenizer_json, write_jsonl, write_recipe

from mixc.engine import local
from mixc.errors import MixcError
from mixc.inspect import inspect
from mixc.pipeline import plan as run_plan
from mixc.recipe import load
from mixc.store.hashes import unseal
from mixc.tokenize import encoder, trial, verdicts
from mixc.tokenize.check import Mismatch
from mixc.tokenize.encoder import EngineMismatch
from mixc.tokenize.engines import Failed, load_engine
from mixc.tokenize.stage import plan, tokenize
from mixc.tokenize.tokenizer import stored_tokenizer
from mixc.verify import verify

MARK = "zebra"


class Wrong:
    """fastokens, but for texts that hold a certain word once it is armed."""

    name = "fastokens"
    armed = True

    def __init__(self, real):
        self._real = real

    def vocabulary(self):
        return self._real.vocabulary()

    def encode(self, batch):
        ids, lengths = self._real.encode(batch)
        ids = ids.copy()
        for i, text in enumerate(batch):
            if MARK in text and self.armed:
                ids[lengths[:i].sum()] ^= 1
        return ids, lengths


@pytest.fixture
def doubled(monkeypatch):
    """A function that has a double stand in for an engine, as version 9.9."""
    real = encoder.load_engine

    def double(kind, name="fastokens"):
        def load_double(asked, raw, mode):
            loaded = real(asked, raw, mode)
            return kind(loaded) if asked == name else loaded

        monkeypatch.setattr(encoder, "load_engine", load_double)
        monkeypatch.setattr(verdicts, "version_of", lambda name: "9.9")
        encoder.load_once.cache_clear()

    yield double
    encoder.load_once.cache_clear()


@pytest.fixture
def wrong(doubled):
    """Replace fastokens by an engine that is wrong where it is hard to see."""
    doubled(Wrong)


def recipe(folder, corpus, **options):
    tokenizer = {"path": "tokenizer.json", "engine": "auto", **options}
    return load(write_recipe(folder, {"web": corpus}, tokenizer=tokenizer))


def without_engines(store):
    """What the store holds, whatever encoded it."""
    return {
        str(path.relative_to(store.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.root.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def engines(store):
    return inspect(store.root)["sources"]["web"]["engines"]


def test_the_engine_makes_no_difference_to_the_store(tmp_path):
    stores = {}
    for name in ("auto", "fastokens", "tokenizers"):
        found = recipe(tmp_path / name, texts(1, 300), engine=name, verify=0.1)
        stores[name] = tokenize(found, workers=1)
    reference = stores["tokenizers"]
    for store in stores.values():
        assert without_engines(store) == without_engines(reference)
        assert store.store_hash == reference.store_hash
    assert engines(stores["auto"])[0].startswith("fastokens")
    assert engines(reference)[0].startswith("tokenizers")


def test_verified_counts_are_in_the_manifest(tmp_path):
    corpus = texts(1, 300)
    size = sum(len(text.encode()) for text in corpus)
    for share, low, high in ((0.0, 0, 0), (0.5, 100, 299), (1.0, 300, 300)):
        store = tokenize(recipe(tmp_path / str(share), corpus, verify=share), workers=1)
        source = inspect(store.root)["sources"]["web"]
        assert low <= source["verified_documents"] <= high
        assert (source["verified_bytes"] == size) == (share == 1.0)


def test_to_verify_more_encodes_again_and_to_verify_less_does_not(tmp_path):
    def shards(store):
        return sorted(identity(path) for path in store.root.rglob("web/*.arrow"))

    some = tokenize(recipe(tmp_path, texts(1, 50), verify=0.1), workers=1)
    before = shards(some)
    less = tokenize(recipe(tmp_path, texts(1, 50), verify=0.05), workers=1)
    assert shards(less) == before
    everything = recipe(tmp_path, texts(1, 50), verify=1.0)
    assert not plan(everything).fresh
    proved = tokenize(everything, workers=1)
    assert shards(proved) != before
    assert inspect(proved.root)["sources"]["web"]["verified_documents"] == 50
    assert proved.store_hash == some.store_hash


def test_an_engine_that_fails_at_the_start_is_dropped(tmp_path, wrong, capsys):
    corpus = [f"{MARK} first", *texts(1, 200)] * 60
    store = tokenize(recipe(tmp_path, corpus), workers=1)
    assert "fastokens" not in " ".join(engines(store))
    assert "fastokens 9.9 gave other ids" in capsys.readouterr().err
    right = tokenize(recipe(tmp_path / "right", corpus, engine="tokenizers"), workers=1)
    assert without_engines(store) == without_engines(right)


def test_an_engine_that_fails_on_the_way_is_dropped_and_its_work_done_again(
    tmp_path, wrong, monkeypatch, capsys
):
    """The first file is encoded and staged before the second shows the fault."""
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)
    folder = tmp_path / "data"
    for name, corpus in (("a", texts(1, 80)), ("b", [f"{MARK} in the middle", *texts(2, 80)])):
        folder.mkdir(exist_ok=True)
        lines = [json.dumps({"text": text}) + "\n" for text in corpus]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    tokenizer = {"path": "tokenizer.json", "engine": "auto", "verify": 0.999999}
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*.jsonl"]}}, tokenizer=tokenizer)
    store = tokenize(load(path), workers=1)
    assert "fastokens" not in " ".join(engines(store))
    assert verify(store.root).documents == 161
    told = capsys.readouterr().err
    (kept,) = (tmp_path / "out/.mixc/store/engines").glob("fastokens-*.json")
    assert str(kept) in told
    mismatch = unseal(kept, "mixc.verdict/1")["mismatch"]
    assert mismatch["text"] == f"{MARK} in the middle"
    assert mismatch["got"] != mismatch["expected"] == load_reference_ids(mismatch["text"])

    # It stays dropped, and what it wrote into the store is not taken over.
    again = tokenize(load(path, ["holdout.fraction=0.3"]), workers=1)
    assert "fastokens" not in " ".join(engines(again))
    assert without_engines(again).keys() == without_engines(store).keys()


def load_reference_ids(text):
    ids, _ = load_engine("tokenizers", tokenizer_json(), "text").encode([text])
    return ids.tolist()


def test_work_of_an_engine_that_proved_wrong_later_is_not_taken_over(tmp_path, wrong, monkeypatch):
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)
    corpus = [f"{MARK} in the middle", *texts(2, 80)]
    poisoned = tokenize(recipe(tmp_path, corpus, verify=0.0), workers=1)
    assert engines(poisoned) == ["fastokens 9.9"]
    mended = tokenize(recipe(tmp_path, corpus, verify=1.0), workers=1)
    right = tokenize(recipe(tmp_path / "right", corpus, engine="tokenizers"), workers=1)
    assert without_engines(mended) == without_engines(right)


def test_a_store_of_an_engine_that_failed_since_is_made_again(tmp_path, wrong, monkeypatch):
    """The file that showed it is gone again, and the store is what the recipe asks for."""
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)
    old = recipe(tmp_path, [f"{MARK} unnoticed", *texts(2, 80)], verify=0.0)
    assert engines(tokenize(old, workers=1)) == ["fastokens 9.9"]
    assert plan(old).fresh
    monkeypatch.undo()
    file = stored_tokenizer(plan(old).old, plan(old).tokenizer_key).describe()
    verdicts.condemn(
        tmp_path / "out/.mixc/store/engines", file, "9.9", Mismatch("fastokens", MARK, [1], [2])
    )
    assert not plan(old).fresh
    mended = tokenize(old, workers=1)
    right = tokenize(recipe(tmp_path / "right", [f"{MARK} unnoticed", *texts(2, 80)]), workers=1)
    assert without_engines(mended) == without_engines(right)


def test_a_trial_reads_on_in_the_next_file_of_a_domain(tmp_path, wrong):
    write_jsonl(tmp_path / "data/a.jsonl", texts(1, 3))
    write_jsonl(tmp_path / "data/b.jsonl", [f"{MARK} in the second file"])
    tokenizer = {"path": "tokenizer.json", "engine": "auto", "verify": 0.0}
    path = write_recipe(tmp_path, {"web": {"paths": ["data/*"]}}, tokenizer=tokenizer)
    assert "fastokens" not in " ".join(engines(tokenize(load(path), workers=1)))


def test_an_end_of_text_that_the_engine_made_up_is_its_fault(tmp_path, doubled, monkeypatch):
    class MakesUp(Wrong):
        def encode(self, batch):
            ids, lengths = super().encode(batch)
            for i, text in enumerate(batch):
                if MARK in text:
                    ids[lengths[:i].sum()] = 0
            return ids, lengths

    MakesUp.armed = False
    doubled(MakesUp)
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)
    corpus = [*texts(1, 20), f"{MARK} ends here", *texts(2, 20)]
    store = tokenize(recipe(tmp_path, corpus, verify=0.0), workers=1)
    assert "fastokens" not in " ".join(engines(store))
    right = tokenize(recipe(tmp_path / "right", corpus, engine="tokenizers"), workers=1)
    assert without_engines(store) == without_engines(right)


def test_a_kill_while_old_work_is_taken_over_changes_nothing(tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def killed(*_):
        raise KilledError

    tokenize(recipe(tmp_path, texts(1, 50), verify=1.0), workers=1)
    path = write_recipe(
        tmp_path, {"web": texts(1, 50)}, tokenizer={"path": "tokenizer.json", "verify": 0.1}
    )
    again = load(path, ["holdout.fraction=0.3"])
    with monkeypatch.context() as patch:
        patch.setattr("mixc.tokenize.stage.stage_unit", killed)
        with pytest.raises(KilledError):
            tokenize(again, workers=1)
    store = tokenize(again, workers=1)
    assert inspect(store.root)["sources"]["web"]["verified_documents"] == 50


def test_an_engine_that_is_asked_for_by_name_is_not_replaced_in_silence(tmp_path, wrong):
    corpus = [f"{MARK} first", *texts(1, 200)] * 60
    for _ in range(2):
        with pytest.raises(MixcError) as caught:
            tokenize(recipe(tmp_path, corpus, engine="fastokens"), workers=1)
        assert caught.value.code == "MX048"
        assert "fastokens-" in str(caught.value.place)


def test_an_engine_that_refuses_the_tokenizer(tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer_json(["?", "a", "b"]))
    store = tokenize(recipe(tmp_path, ["a b", "b"]), workers=1)
    assert engines(store)[0].startswith("tokenizers")
    assert "fastokens: " in capsys.readouterr().err
    with pytest.raises(MixcError) as caught:
        tokenize(recipe(tmp_path, ["a b", "b"], engine="fastokens"), workers=1)
    assert caught.value.code == "MX047"


def test_a_verdict_is_kept_and_one_that_is_damaged_is_not_relied_on(tmp_path, monkeypatch):
    tried = []
    real = trial.Trial.run
    monkeypatch.setattr(trial.Trial, "run", lambda *a, **k: tried.append(1) or real(*a, **k))
    corpus = texts(1, 50)
    tokenize(recipe(tmp_path, corpus), workers=1)
    tokenize(recipe(tmp_path, corpus, verify=0.5), workers=1)
    assert len(tried) == 1
    tokenize(recipe(tmp_path, texts(2, 50)), workers=1)  # other text to try it on
    assert len(tried) == 2
    (kept,) = (tmp_path / "out/.mixc/store/engines").glob("fastokens-*.json")
    kept.write_bytes(kept.read_bytes().replace(b"null", b"nu11"))
    tokenize(recipe(tmp_path, texts(2, 50), verify=0.1), workers=1)
    assert len(tried) == 3


def test_verification_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)
    manifests = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        (folder / "data").mkdir(parents=True)
        for name in "abc":
            lines = [json.dumps({"text": text}) + "\n" for text in texts(ord(name), 50)]
            (folder / f"data/{name}.jsonl").write_text("".join(lines))
        tokenizer = {"path": "tokenizer.json", "engine": "auto", "verify": 0.3}
        path = write_recipe(folder, {"web": {"paths": ["data/*"]}}, tokenizer=tokenizer)
        store = tokenize(load(path), workers=workers)
        manifests.append((store.root / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_ids_out_of_range_are_noticed(doubled, tmp_path):
    class TooLarge(Wrong):
        def encode(self, batch):
            return np.full(len(batch), 1 << 20, np.uint32), np.ones(len(batch), np.int64)

    doubled(TooLarge, "tokenizers")
    with pytest.raises(MixcError) as caught:
        tokenize(recipe(tmp_path, ["a"], engine="tokenizers"), workers=1)
    assert caught.value.code == "MX031"


def find_mismatch(context, task, report):
    raise EngineMismatch(Mismatch("fastokens", "text", [1], [2]))


def test_a_mismatch_found_by_a_worker_process_arrives_whole():
    with local.Crew(2) as crew, pytest.raises(EngineMismatch) as caught:
        crew.prepare(dict)
        list(crew.run(find_mismatch, [1, 2], lambda amount: None))
    assert caught.value.mismatch == Mismatch("fastokens", "text", [1], [2])


def test_where_an_engine_gives_up_the_reference_encodes(tmp_path, doubled, monkeypatch):
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)

    class GivesUp(Wrong):
        armed = False

        def encode(self, batch):
            if len(batch) > 1 and any(MARK in text for text in batch):
                raise Failed("too hard")
            return super().encode(batch)

    doubled(GivesUp)
    corpus = [f"{MARK} first", *texts(1, 20)]
    store = tokenize(recipe(tmp_path, corpus), workers=1)
    right = tokenize(recipe(tmp_path / "right", corpus, engine="tokenizers"), workers=1)
    assert without_engines(store) == without_engines(right)
    source = inspect(store.root)["sources"]["web"]
    assert (source["engines"], source["gave_up"]) == (["fastokens 9.9"], 21)


def test_what_a_condemned_engine_wrote_is_taken_by_no_other_engine(tmp_path, wrong, monkeypatch):
    """The store is its work; then it fails on a new file; then another engine is asked for."""
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)
    monkeypatch.setattr("mixc.tokenize.units._BUNDLE_FILES", 1)

    def load_with(engine, verify):
        tokenizer = {"path": "tokenizer.json", "engine": engine, "verify": verify}
        domain = {"paths": ["data/*.jsonl"]}
        return load(write_recipe(tmp_path, {"web": domain}, tokenizer=tokenizer))

    write_jsonl(tmp_path / "data/a.jsonl", [f"{MARK} unnoticed", *texts(1, 20)])
    first = tokenize(load_with("fastokens", 0.0), workers=1)
    assert engines(first) == ["fastokens 9.9"]
    write_jsonl(tmp_path / "data/b.jsonl", [f"{MARK} noticed"])
    with pytest.raises(MixcError) as caught:
        tokenize(load_with("fastokens", 1.0), workers=1)
    assert caught.value.code == "MX048"
    pytest.importorskip("gigatoken", reason="needs mixc[gigatoken]")
    after = tokenize(load_with("gigatoken", 0.0), workers=1)
    assert [one.partition(" ")[0] for one in engines(after)] == ["gigatoken"]


def test_a_reference_that_gives_up_on_the_texts_to_try_leaves_the_engine_untried(tmp_path, capsys):
    """A model of words without a word for the unknown."""
    data = json.loads(word_tokenizer_json(["a", "b"]))
    data["model"]["unk_token"] = "none"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    store = tokenize(recipe(tmp_path, ["a b", "b"]), workers=1)
    assert engines(store)[0].startswith("tokenizers")
    with pytest.raises(MixcError) as caught:
        tokenize(recipe(tmp_path, ["a b", "unheard of"]), workers=1)
    assert caught.value.code == "MX030"
    assert run_plan(recipe(tmp_path, ["a b", "unheard of"]), workers=1)[0].status == "stale"


def test_an_id_out_of_range_is_a_mismatch_of_a_fast_engine(tmp_path, doubled, monkeypatch):
    class TooLarge(Wrong):
        def encode(self, batch):
            ids, lengths = super().encode(batch)
            if any(MARK in text for text in batch):
                ids[0] = 1 << 30
            return ids, lengths

    doubled(TooLarge)
    monkeypatch.setattr("mixc.tokenize.trial.head_bytes", lambda size: 0)
    store = tokenize(recipe(tmp_path, [f"{MARK} far out", *texts(1, 20)], verify=0.0), workers=1)
    assert "fastokens" not in " ".join(engines(store))
