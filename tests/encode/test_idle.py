"""What a run says of the side it waited for is what its device says, not how long the host stood waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcae_cache.compute.idle import IdleClock
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import Summary, carry_out
from dcae_cache.encode.progress import Listener
from dcae_cache.encode.run import Request, Run
from dcae_cache.models.latent_encoder import EncodedBatch
from dcae_cache.records import Bucket
from dcae_cache.sources import SourceOptions
from helpers.images import tiny_config


class Moment:
    """A mark on a clock that the test sets."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: object) -> float:
        assert isinstance(earlier, Moment)
        return self.seconds - earlier.seconds


class TimedDevice:
    """Takes ``busy`` of every second for a batch, whatever the host does meanwhile; latents are zero."""

    device = torch.device("cpu")
    streams = 1
    batch_size: Callable[[Bucket], int] = staticmethod(lambda bucket: 3)

    def __init__(self, busy: float) -> None:
        self.notify: Callable[[str], None] = lambda text: None
        self.idle = IdleClock()
        self._busy, self._batches = busy, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> Sequence[NDArray[np.uint8]]:
        return images

    def launch(self, images: Sequence[NDArray[np.uint8]]) -> TimedBatch:
        begin = float(self._batches)
        self._batches += 1
        self.idle.add(Moment(begin), Moment(begin + self._busy))
        height, width, _ = images[0].shape
        return TimedBatch(torch.zeros(len(images), 32, height // 32, width // 32))


class TimedBatch:
    def __init__(self, latents: torch.Tensor) -> None:
        self._latents = latents

    def result(self) -> EncodedBatch:
        return EncodedBatch(self._latents, None, [None] * len(self._latents))


def encode_on(device: TimedDevice, source: Path, out: Path) -> Summary:
    def opened(run: Run, streams: int) -> TimedDevice:
        return device

    options = RunOptions(device="cpu", workers=1, batch_size=3)
    request = Request(
        source=str(source), out=out, config=tiny_config(), options=options, source_options=SourceOptions()
    )
    return carry_out(request, Listener(), opened)


@pytest.mark.parametrize("busy", [0.97, 0.59])
def test_idle_time_is_the_device_s_own(photos: Path, tmp_path: Path, busy: float) -> None:
    """The host waits for decoding nearly all of the time here; a device that works 97 % of its time is not starved."""
    device = TimedDevice(busy)
    summary = encode_on(device, photos, tmp_path / "out")
    gaps, batches = device._batches - 1, device._batches
    assert batches > 5
    assert summary.waited_seconds == pytest.approx(gaps * (1 - busy))
    assert summary.busy_seconds == pytest.approx(batches * busy)
    assert summary.idle_share == pytest.approx(gaps * (1 - busy) / (gaps * (1 - busy) + batches * busy))
