"""What recipes without the later keys compile to, as it has been since the first release."""

import hashlib
import json

from build_helpers import make_mixture, random_corpus, read_rows

from mixc.store.hashes import hash_file

CORPUS = random_corpus(11, {"code": (60, 20), "prose": (20, 60), "web": (90, 9)})
MIXTURE = {"rows": 120, "seq_len": 16, "max_epochs": 3, "formats": ["nanogpt", "megatron"]}
HELD = {"fraction": 0.1}
STREAM = "4acc0a5d7c71a0a8d977eb90e1510c13"
SOURCES = "2154494dd5eab7934c9e47dbe2b2ff5d"
KEY = "6825d0cce0323268aa2a95a94f8fbd94"
TRAIN = "1a3b5f7b9b760432958c780d2a57fdfb"


def test_a_plain_recipe_gives_the_bytes_it_always_gave(tmp_path):
    _, mixture = make_mixture(tmp_path, CORPUS, mixture=MIXTURE, holdout=HELD)
    rows = json.dumps(read_rows(mixture), sort_keys=True).encode()
    assert mixture.manifest["stream_hash"] == STREAM
    assert hashlib.sha256(rows).hexdigest()[:32] == SOURCES
    assert hash_file(mixture.root / "nanogpt/train.bin") == TRAIN
    assert mixture.manifest["key"] == KEY
