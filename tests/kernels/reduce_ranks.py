"""One of several ranks that reduce a share of the same losses; writes what it gets.

reduce_ranks.py RANK FOLDER: FOLDER holds case.npz, and gets <ranks>-<rank>.npy for 2 and 4 ranks.
"""

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mixc_kernels.domain_reduce import domain_reduce

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
case = {name: torch.from_numpy(array) for name, array in np.load(folder / "case.npz").items()}
for ranks in (4, 2):
    if rank >= ranks:
        break
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store-{ranks}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=120),
    )
    mine = {name: array[rank::ranks] for name, array in case.items()}
    stats = domain_reduce(**mine, K=5).all_reduce()
    np.save(folder / f"{ranks}-{rank}.npy", stats.table().numpy())
    dist.destroy_process_group()
