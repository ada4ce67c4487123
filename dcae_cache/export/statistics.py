"""Mean and standard deviation per channel of the exported latents, as trainers normalise by them.

Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..cache.moments import ChannelMoments
from .exporter import Facts


def moments_of(facts: Facts, shards: Sequence[Mapping[str, Any]]) -> ChannelMoments:
    """Of the raw latents: the cache's own where all of it is exported, else those that the shards noted."""
    if facts.statistics is not None:
        return facts.statistics
    noted = [ChannelMoments.from_json(dict(shard["moments"])) for shard in shards]
    return ChannelMoments.merge(noted, facts.channels)


def unbiased_std(moments: ChannelMoments) -> list[float]:
    """Per channel, as torch.std has it: divided by the count less one."""
    correction = math.sqrt(moments.count / (moments.count - 1)) if moments.count > 1 else 1.0
    return [std * correction for std in moments.std]
