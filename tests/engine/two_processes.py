"""Work that two processes do together, as data-parallel training does."""

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor


def in_two_processes(work: Callable[[int], list[Tensor]], folder: Path) -> list[list[Tensor]]:
    """What `work` returns for rank 0 and 1, in one process group.

    Args:
        work: a function of the rank that can be pickled.
        folder: an empty one, for what they exchange.
    """
    spawn = torch.multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_run, args=(work, rank, folder), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _run(work: Callable[[int], list[Tensor]], rank: int, folder: Path) -> None:
    address, limit = f"file://{folder / 'meeting'}", timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=limit)
    warnings.simplefilter("ignore")
    torch.save(work(rank), folder / f"{rank}.part")
    (folder / f"{rank}.part").rename(folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # leaving a group in an orderly way can take for ever
