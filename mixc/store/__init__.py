"""The token store: shards, manifest, commit protocol, hashes, holdout."""
