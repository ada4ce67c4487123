"""Which rank this process is, and how ranks share the batches of an epoch. Knows nothing of samples or files."""

from __future__ import annotations

import os
import sys
from typing import Literal

import torch.distributed as dist

from ..errors import UsageError

Uneven = Literal["repeat", "drop", "ragged"]


def rank_and_world_size_here() -> tuple[int, int]:
    """Of torch.distributed where it is set up, else of the launcher's RANK and WORLD_SIZE, else (0, 1)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        return int(rank), int(world_size)
    except ValueError as error:
        raise UsageError(f"RANK={rank} and WORLD_SIZE={world_size} in the environment must be numbers.") from error


def num_steps(batches: int, rank: int, world_size: int, uneven: Uneven) -> int:
    """How many of so many batches a rank takes; with "repeat", beyond the last one."""
    if uneven == "ragged":
        return max(-(-(batches - rank) // world_size), 0)
    return max(batches // world_size if uneven == "drop" else -(-batches // world_size), 0)


def refuse_second_sharding(depth: int) -> None:
    """UsageError if the caller, so many frames up, is accelerate's own sharding of batches: every rank would get a
    share of its share, and steps with a smaller batch would be lost."""
    holder = sys._getframe(depth + 1).f_locals.get("self")
    if type(holder).__name__ == "BatchSamplerShard" and getattr(holder, "num_processes", 1) > 1:
        raise UsageError(
            "`accelerator.prepare` would share the batches out among the ranks a second time: BucketBatchSampler does "
            "so already. Use LatentLoader(dataset, sampler) in place of DataLoader: prepare leaves it as it is."
        )
