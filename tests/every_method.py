"""Every method on one tiny store: for tests of what no answer may depend on.

Started by torchrun, `every_method.py RECIPE` prints the weights of all methods, as the first rank
has them.
"""

import json
import sys
from pathlib import Path

from build_helpers import random_corpus, write_corpus

from mixc.recipe import load
from mixc.registry import METHODS
from mixc.solve.stage import make_problem, run_method
from mixc.store.store import open_store
from mixc.tokenize.stage import tokenize

CORPUS = random_corpus(6, {"code": (30, 25), "prose": (30, 40), "web": (40, 15)})
PROXY = {"preset": "nano", "steps": 6, "batch_tokens": 352, "seq_len": 32, "device": "cpu"}
SMALL = {
    "regression": {"runs": 6, "draws": 20},
    "mixing_law": {"runs": 8},
    "tracin_we": {"checkpoints": 2, "batches": 2},
    "aioli": {"rounds": 1, "sweeps": 1},
    "skill_it": {"rounds": 2},
}
TRAINING = [name for name, entry in METHODS.items() if entry.trains]


def make_recipe(folder, *, corpus=CORPUS, workers=1, **proxy):
    """Write the corpora and a recipe that names them in their order, and tokenize."""
    solve = {"method": "natural", "proxy": PROXY | proxy, "check": False}
    path = write_corpus(folder, corpus, solve=solve, seed=4)
    tokenize(load(path), workers=workers)
    return path


def load_for(path, name):
    """The recipe with a method, as small as it comes."""
    given = [f"solve.{name}.{key}={value}" for key, value in SMALL.get(name, {}).items()]
    return load(path, [f"solve.method={name}", *given])


def problem_for(path, name):
    """(problem, the method's options); nothing is written."""
    recipe = load_for(path, name)
    return make_problem(recipe, open_store(recipe.workdir_path / "store")), recipe.solve.options


if __name__ == "__main__":
    from mixc.proxy import ranks

    recipe = Path(sys.argv[1])
    with ranks.joined():
        answers = {name: run_method(name, *problem_for(recipe, name)) for name in TRAINING}
        if ranks.first():
            print(json.dumps({name: one.weights.tolist() for name, one in answers.items()}))
