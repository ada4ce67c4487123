"""An export from beginning to end: refuse what can't work, write shard by shard, resume where a run was stopped.

A shard's files are made in a folder of their own, moved into place when they are whole, and noted in a journal. The
same command again goes on behind the last shard noted. Knows nothing of any one format.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ..cache.locks import locked
from ..errors import CacheError, UsageError
from ..files import make_folder, sync_folder, write_failed
from ..reader.dataset import LatentDataset
from .choice import choose, facts_of
from .edm2 import Edm2Exporter
from .exporter import Exporter, ExportOptions
from .journal import Journal
from .lightningdit import LightningDiTExporter
from .mds import MdsExporter
from .npy_tree import NpyExporter
from .samples import ExportSample, Samples
from .webdataset import WebDatasetExporter
from .wids import WidsExporter

EXPORTERS: dict[str, type[Exporter]] = {
    kind.name: kind
    for kind in (WidsExporter, NpyExporter, LightningDiTExporter, Edm2Exporter, MdsExporter, WebDatasetExporter)
}
_WORK = ".dcae-cache-export-shard"
_FLUSHERS = 8  # files flushed to disk at a time: a disk takes many at once nearly as fast as one

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What an export holds. ``shards_reused`` were there already; ``cautions``: what may not have been meant;
    ``note``: how to point a trainer at it."""

    out: str
    format: str
    num_samples: int
    num_shards: int
    shards_reused: int
    cautions: tuple[str, ...]
    note: str


def export_cache(
    cache: str | Path,
    to: str,
    out: str | Path,
    options: ExportOptions | None = None,
    progress: Progress = lambda done, total: None,
) -> ExportSummary:
    """Write the cache's samples to the folder ``out`` in the format ``to``, one of EXPORTERS.

    ``progress`` hears (samples done, of how many). Run again with the same arguments it goes on behind the last whole
    shard. Raises UsageError, before anything is written, for samples that the format can't hold and for a folder that
    holds something else; CacheError for a cache that can't be read or changes meanwhile, and where ``out`` can't be
    written; MissingExtraError where the format needs a library that isn't there.
    """
    options = options or ExportOptions()
    if to not in EXPORTERS:
        raise UsageError(f"There is no format {to!r}; there are {', '.join(EXPORTERS)}.")
    dataset = LatentDataset(cache, columns=(), allow_incomplete=True)  # said among the cautions
    numbers = choose(dataset, options)
    exporter = EXPORTERS[to](facts_of(dataset, numbers), options)
    exporter.check()
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`out` {folder} is a file; expected a folder that doesn't exist yet, or an empty one.")
    make_folder(folder)
    samples = Samples(dataset, numbers, exporter.values, with_mirrored=exporter.with_mirrored)
    stamp = dataset.store.stamp(dataset.index)
    with locked(folder):
        journal = Journal(folder, {"cache": stamp, "format": to, **asdict(options)})
        reused = len(journal.shards)
        _write_shards(exporter, samples, journal, folder, progress)
        if stamp != dataset.store.stamp(dataset.store.index()):
            raise CacheError(f"{cache} was changed while it was exported. Delete {folder} and export again.")
        note = exporter.finish(folder, journal.shards)
        sync_folder(folder)
    return ExportSummary(
        out=str(folder),
        format=to,
        num_samples=len(samples),
        num_shards=len(journal.shards),
        shards_reused=reused,
        cautions=(*_cautions(dataset), *exporter.cautions()),
        note=note,
    )


def _cautions(dataset: LatentDataset) -> list[str]:
    if dataset.index["complete"]:
        return []
    return [f"{dataset.cache} is not complete: run the same encode command again to go on, then export it anew."]


def _write_shards(exporter: Exporter, samples: Samples, journal: Journal, folder: Path, progress: Progress) -> None:
    size, done = exporter.shard_size, len(journal.shards)
    num_shards = -(-len(samples) // size)
    _refuse_too_small_a_disk(exporter, folder, 1 - done / num_shards)
    work = folder / _WORK
    try:
        for shard in range(done, num_shards):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            start = shard * size
            stop = min(start + size, len(samples))
            noted = exporter.write(work, shard, _counted(samples, start, stop, progress))
            _move_into(work, folder)
            journal.add(noted)
            progress(stop, len(samples))
    except OSError as error:
        raise CacheError(write_failed(folder, error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _counted(samples: Samples, start: int, stop: int, progress: Progress) -> Iterator[ExportSample]:
    for done, sample in enumerate(samples.read(start, stop), start):
        progress(done, len(samples))
        yield sample


def _refuse_too_small_a_disk(exporter: Exporter, folder: Path, share: float) -> None:
    expected = int(exporter.num_bytes * exporter.needs * share)
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise CacheError(
            f"{folder} would grow by about {expected / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left. Free "
            "some space, choose another `out`, or export less with `limit` or `where`."
        )


def _move_into(work: Path, folder: Path) -> None:
    """Move a shard's files to their places, all flushed to disk before. What is there of the same name is a leftover
    of this shard, from a run that was stopped."""
    paths = sorted(work.rglob("*"))
    files = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="flush") as pool:
        list(pool.map(_flush, files))
    touched = {folder}
    for path in paths:
        if path.is_dir():
            target = folder / path.relative_to(work)
            target.mkdir(exist_ok=True)
            touched.add(target)
    for path in files:
        os.replace(path, folder / path.relative_to(work))
    for each in sorted(touched, reverse=True):  # a folder before the one it lies in
        sync_folder(each)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
