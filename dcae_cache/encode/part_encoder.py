"""One process's share of a run: parts in, committed parts out.

Everything that takes long overlaps: decoding on threads (loading), encoding on the device (the encoder), writing on a
thread of its own (part_writer.py). Memory holds the images in flight and a few parts' latents, however large the
source is. Knows nothing of plans, indexes or other processes, and makes no encoder: it is handed one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache.parts import PARTS_FOLDER, PartContent, PartInfo, commit_part, shard_header
from ..compute.cores import default_workers
from ..compute.idle import IdleClock
from ..loading.batches import Batch, PartEnd, PartFailed, PartLoaded, load_batches
from ..loading.decoders import decoders_are_available
from ..loading.prefetch import Prefetch
from ..loading.rows import LoadSettings
from ..models.latent_encoder import EncodedBatch
from ..records import Bucket, Part, StoredAt
from ..trace import NO_TRACE, Trace
from .distributed import find_rank
from .part_writer import PartWriter
from .profile import profiled, trace_device
from .progress import Counter
from .reuse import ReusableLatents, encode_fresh, find_reusable, prepare_fresh
from .run import Run, fixed_batches
from .store_out import PartSender

_MANY_WORKERS = 4  # together they hold the lock most of the time


class Pending(Protocol):
    """A batch under way on a device."""

    def result(self) -> EncodedBatch: ...


class Encoder(Protocol):
    """What encodes: models.latent_encoder.LatentEncoder, or a stand-in. ``prepare`` is called on the loading thread,
    with images uint8 [H, W, 3] of one size, and what it gives goes to ``launch``, which returns before the work is
    done; up to ``streams`` batches are under way at once. ``batch_size``: images of a size in a full batch. ``idle``
    tells how long the device worked and stood still."""

    device: torch.device
    streams: int
    notify: Callable[[str], None]
    idle: IdleClock

    @property
    def batch_size(self) -> Callable[[Bucket], int]: ...

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> Any: ...
    def launch(self, images: Any) -> Pending: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


OpenEncoder = Callable[[Run, int], Encoder]  # of the run, so many streams


def make_parts(
    run: Run, parts: Iterable[Part], gone: frozenset[str], workers: int, open_encoder: OpenEncoder, counter: Counter
) -> list[PartInfo]:
    """``encode_parts`` with an encoder of its own, which has as many streams as torch has threads here, and with the
    latents that the cache has already. ``gone``: planned keys that the source has no more."""
    reusable = find_reusable(run, gone)
    streams = min(torch.get_num_threads(), default_workers())  # torch counts cores that a cgroup may not use in full
    with profiled(run.options.profile, find_rank()) as trace, open_encoder(run, streams) as encoder:
        counter.own.kernels = run.model.kernels
        for note in run.model.notes:
            counter.tell_once(note)
        return encode_parts(run, parts, encoder, reusable, workers, counter, trace)


def decode_in_processes(device: torch.device, workers: int, cores: int) -> bool:
    """Whether ``workers`` decoders are processes beside a device that encodes, on so many cores.

    On a thread decoding holds the interpreter lock for about a fifth of its time. A few threads leave enough of it to
    launch a device's work in time, and together do what as many processes would; many don't. A CPU that encodes
    leaves no cores for more.
    """
    return device.type != "cpu" and min(workers, cores) >= _MANY_WORKERS and decoders_are_available()


def encode_parts(
    run: Run,
    parts: Iterable[Part],
    encoder: Encoder,
    reusable: ReusableLatents,
    workers: int,
    counter: Counter,
    trace: Trace = NO_TRACE,
) -> list[PartInfo]:
    """Encode and commit the parts; while the device works on a batch (a CPU on several) the next is prepared by
    ``workers`` decoders, each a thread or a process.

    ``parts`` is asked for the next one, on another thread, when the samples of the one before are on their way.
    """
    counter.devices.add(str(encoder.device))
    encoder.notify = counter.notify
    trace_device(encoder.idle, encoder.device, trace)
    batch_size = fixed_batches(run) or encoder.batch_size
    settings = LoadSettings(
        run.fitting,
        run.config.max_pixels,
        batch_size,
        workers,
        reusable.known,
        processes=decode_in_processes(encoder.device, workers, default_workers()),
        trace=trace,
        notify=counter.notify,
    )
    header, channels = shard_header(run.recipe, run.fingerprint), run.recipe["latent_channels"]
    under_way: deque[tuple[Batch, Callable[[], EncodedBatch] | None] | PartEnd] = deque()

    def commit(content: PartContent) -> PartInfo:
        trace.name_lane("writer")
        with trace.span(content.name):
            info = commit_part(run.cache, content, header, channels)
        sender.add(info.name)
        return info

    def settle_one(writer: PartWriter) -> None:
        item = under_way.popleft()
        if isinstance(item, PartLoaded):
            counter.own.not_made += item.part.not_made
            writer.complete(item.part, run.source.counts().parts.pop(item.part.part.number, None))
            counter.count_part()
            reusable.forget(item.part.part.name)
        elif isinstance(item, PartFailed):
            writer.drop(item.part)
            counter.own.failures.append(str(item.error))
        else:
            with trace.span("wait for latents"):
                batch, encoded = item[0], reusable.complete(*item)
            counter.count_redone([batch.part.rows[batch.slots[i]].key for i in encoded.redone])
            writer.add(batch, encoded)
            counter.own.copied += sum(isinstance(image, StoredAt) for image in batch.images)
            counter.count_time(
                encoder.idle.idle_seconds / encoder.streams, encoder.idle.busy_seconds / encoder.streams
            )

    prepared = _prepared(load_batches(run.source, parts, settings), encoder, trace)
    with (
        PartSender(run.away, run.cache) as sender,
        PartWriter(commit, counter.count, run.cache / PARTS_FOLDER) as writer,
        closing(Prefetch(prepared, depth=2, trace=trace)) as loaded,
    ):
        for item, images in loaded:
            with trace.span("launch") if isinstance(item, Batch) else nullcontext():
                under_way.append((item, encode_fresh(images, encoder.launch)) if isinstance(item, Batch) else item)
            while sum(isinstance(waiting, tuple) for waiting in under_way) > encoder.streams:
                settle_one(writer)
        while under_way:
            settle_one(writer)
    return writer.infos


def _prepared(
    loaded: Generator[Batch | PartEnd], encoder: Encoder, trace: Trace
) -> Generator[tuple[Batch | PartEnd, Any]]:
    """What is loaded, and of batches the images to be encoded, put together for the encoder by the thread that runs
    this."""
    with closing(loaded):
        for item in loaded:
            if isinstance(item, Batch):
                with trace.span("put a batch together"):
                    images = prepare_fresh(item, encoder.prepare)
                yield item, images
            else:
                yield item, None
