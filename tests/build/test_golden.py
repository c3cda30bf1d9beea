"""What recipes without the later keys compile to, as it has been since the first release."""

import hashlib
import json

from build_helpers import make_mixture, random_corpus, read_rows

from mixc.store.hashes import hash_file

CORPUS = random_corpus(11, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 3, "formats": ["nanogpt", "megatron"]}
HELD = {"fraction": 0.1}
STREAM = "685a104fd8e05cae0ce1543ff75069e1"
SOURCES = "23f49abbd7b6bb219cdbd3af0943bc46"
KEY = "ed247fa3f603b5d04d6db985b0ad2d4a"
TRAIN = "a18a0b4cfd588f05637327b19703c58f"


def test_a_plain_recipe_gives_the_bytes_it_always_gave(tmp_path):
    _, mixture = make_mixture(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    rows = json.dumps(read_rows(mixture), sort_keys=True).encode()
    assert mixture.manifest["stream_hash"] == STREAM
    assert hashlib.sha256(rows).hexdigest()[:32] == SOURCES
    assert hash_file(mixture.root / "nanogpt/train.bin") == TRAIN
    assert mixture.manifest["key"] == KEY
