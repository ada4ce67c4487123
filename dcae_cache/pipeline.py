"""The story of a run: list the source, plan its parts, encode those that aren't committed yet, write the index.

Everything that takes long overlaps: decoding on threads (loading.py), encoding on the device (encoder.py), writing on
a thread of its own. Memory holds the images in flight and one part's latents, however large the source is.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .config import EncodeConfig, ModelIdentity, RunOptions, fingerprint, recipe_changes, recipe_of
from .encoder import EncoderSettings, LatentEncoder, PendingBatch, auto_batch_size, pick_device
from .errors import CacheError, ModelError, RecipeMismatchError, TooManySkippedError, UsageError
from .files import locked, make_folder, remove_temporary_files, replace_atomically
from .index import build_index, save_index
from .loading import Batch, LoadSettings, PartInProgress, PartLoaded, Prefetch, load_batches
from .models.autoencoder import DCAE
from .models.checkpoint import Checkpoint, resolve
from .plan import PLAN_NAME, Changes, Plan, entries_digest, grow_plan, list_entries, load_plan, make_plan
from .records import Bucket, Part, Row
from .shards import (
    PARTS_FOLDER,
    PartContent,
    PartInfo,
    commit_part,
    read_part_info,
    read_rows,
    shard_path,
    tensor_name,
)
from .sources import Source, SourceOptions, open_source


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in samples: ``done`` counts stored and skipped ones, those of earlier runs included."""

    total: int
    done: int
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, and what the cache holds now."""

    out: str
    complete: bool
    encoded: int  # by this run
    skipped: dict[str, int]  # reason -> samples, in the whole cache
    num_samples: int  # stored, in the whole cache
    num_bytes: int
    num_parts: int
    parts_reused: int
    vanished: int  # planned, but gone from the source
    device: str | None  # None: nothing was left to encode
    seconds: float
    waited_seconds: float  # the encoder stood still for want of pixels

    @property
    def images_per_second(self) -> float:
        return self.encoded / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Run:
    """What all steps of one run share."""

    source: Source
    cache: Path
    config: EncodeConfig
    options: RunOptions
    checkpoint: Checkpoint
    recipe: dict[str, Any]
    report: Callable[[Progress], None]
    counts: Counter[str] = field(default_factory=Counter)  # total, done, skipped, encoded
    waited_seconds: float = 0.0
    device: torch.device | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    def count(self, done: int, skipped: int) -> None:
        self.counts.update(done=done, skipped=skipped)
        self.report(Progress(self.counts["total"], self.counts["done"], self.counts["skipped"]))


def encode_dataset(
    source: str | Path,
    out: str | Path,
    config: EncodeConfig | None = None,
    options: RunOptions | None = None,
    *,
    source_options: SourceOptions | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Summary:
    """Encode every image of ``source`` into the cache ``out``; run it again to resume, or to add what is new.

    ``report`` is called on this thread after every batch. Raises a DCAECacheError of errors.py; whatever was committed
    before stays valid. On KeyboardInterrupt finished parts are kept and indexed, then it is raised again.
    """
    started = time.perf_counter()
    run = _start(source, out, config or EncodeConfig(), options or RunOptions(), source_options, report)
    make_folder(run.cache / PARTS_FOLDER)
    with locked(run.cache):
        remove_temporary_files(run.cache)
        remove_temporary_files(run.cache / PARTS_FOLDER)
        plan, changes = _plan(run)
        done, todo = _split(plan, run)
        run.counts["total"] = plan.num_entries
        run.count(sum(i.num_samples + i.num_skipped for i in done), sum(i.num_skipped for i in done))
        try:
            new = _encode_parts(run, todo) if todo else []
        except KeyboardInterrupt:
            _finish(run, plan, [info for info, _ in _committed(plan, run) if info])
            raise
        infos = sorted([*done, *new], key=lambda info: info.name)
        index = _finish(run, plan, infos)
    summary = _summarise(run, index, changes, len(done), time.perf_counter() - started)
    _check_skip_rate(summary, run.options.max_skip_rate)
    return summary


def _start(
    source: str | Path,
    out: str | Path,
    config: EncodeConfig,
    options: RunOptions,
    source_options: SourceOptions | None,
    report: Callable[[Progress], None] | None,
) -> _Run:
    """Find source and model and refuse what can't work, before anything is written."""
    origin = open_source(str(source), source_options)
    cache = Path(out)
    _refuse_foreign_folder(cache, origin)
    checkpoint = resolve(
        config.model,
        revision=config.revision,
        token=options.token,
        cache_dir=options.cache_dir,
        offline=options.offline,
    )
    config.bucket_rule(checkpoint.spec.spatial_compression_ratio)
    recipe = recipe_of(config, identify(checkpoint, config))
    return _Run(origin, cache, config, options, checkpoint, recipe, report or (lambda _: None))


def identify(checkpoint: Checkpoint, config: EncodeConfig) -> ModelIdentity:
    """The model as the recipe names it. Raises ModelError where no scaling factor is known: 1 is never assumed."""
    scaling_factor = config.scaling_factor or checkpoint.scaling_factor
    if scaling_factor is None:
        raise ModelError(
            f"{checkpoint.name} publishes no scaling factor. Pass one with --scaling-factor: 1 / std of its raw latents "
            "over your data."
        )
    return ModelIdentity(
        name=checkpoint.name,
        repo_id=checkpoint.repo_id,
        revision=checkpoint.revision,
        weights_sha256=checkpoint.weights_sha256("encoder"),
        spatial_compression_ratio=checkpoint.spec.spatial_compression_ratio,
        latent_channels=checkpoint.spec.latent_channels,
        scaling_factor=scaling_factor,
    )


def _refuse_foreign_folder(cache: Path, source: Source) -> None:
    if cache.exists() and not cache.is_dir():
        raise UsageError(f"--out {cache} is a file; expected a folder that doesn't exist yet, or a cache.")
    if cache.is_dir() and not (cache / PLAN_NAME).exists():
        strangers = [
            entry.name for entry in cache.iterdir() if not entry.name.startswith(".") and entry.name != PARTS_FOLDER
        ]
        if strangers:
            raise UsageError(
                f"--out {cache} holds other files ({', '.join(sorted(strangers)[:3])}) and is no cache. "
                "Nothing was written; choose an empty or new folder."
            )
    if cache.exists() and Path(source.uri).exists() and cache.samefile(source.uri):
        raise UsageError(f"--out {cache} is the source itself. Nothing was written; choose another folder.")


def _plan(run: _Run) -> tuple[Plan, Changes]:
    """The plan of the first run, grown by what the source has gained since; refused when the recipe has changed."""
    known = load_plan(run.cache)
    if known is not None:
        _refuse_other_recipe(run, known)
    listing = list_entries(run.source.entries(), run.options.limit)
    part_size = run.source.entries_per_part or run.options.part_size
    if known is None:
        plan = make_plan(listing, run.recipe, run.source.uri, part_size)
        changes = Changes(plan.num_entries, 0, 0)
    else:
        plan, changes = grow_plan(known, listing, part_size)
    if known is None or plan.table != known.table:
        plan.save(run.cache)
    return plan, changes


def _refuse_other_recipe(run: _Run, known: Plan) -> None:
    changes = recipe_changes(known.recipe, run.recipe)
    if changes:
        raise RecipeMismatchError(
            f"{run.cache} was made with another recipe: {'; '.join(changes)}. Nothing was changed. "
            "Use the old settings, or another --out."
        )


def _committed(plan: Plan, run: _Run) -> Iterable[tuple[PartInfo | None, Part]]:
    """Each planned part with its info if it is committed for this recipe and these entries, else with None."""
    for part in plan.parts():
        try:
            info = read_part_info(run.cache, part.name)
        except CacheError:
            info = None  # a damaged table commits nothing: the part is made again
        if info is not None:
            shard = shard_path(run.cache, part.name)
            whole = shard.exists() and shard.stat().st_size == info.shard_num_bytes
            if not whole or (info.fingerprint, info.entries_sha256) != (run.fingerprint, entries_digest(part)):
                info = None
        yield info, part


def _split(plan: Plan, run: _Run) -> tuple[list[PartInfo], list[Part]]:
    done: list[PartInfo] = []
    todo: list[Part] = []
    for info, part in _committed(plan, run):
        if info is None:
            todo.append(part)
        else:
            done.append(info)
    return done, todo


def _encode_parts(run: _Run, parts: list[Part]) -> list[PartInfo]:
    """Encode and commit the parts; one batch is always under way on the device while the next is prepared."""
    encoder = _open_encoder(run)
    run.device = encoder.device
    settings = LoadSettings(
        run.config.bucket_rule(run.checkpoint.spec.spatial_compression_ratio),
        run.config.max_pixels,
        _batch_sizes(run.options.batch_size, encoder.device.type),
        run.options.workers or default_workers(),
    )
    under_way: deque[tuple[Batch, PendingBatch] | PartLoaded] = deque()
    collector = _Collector(run)
    with collector, closing(Prefetch(load_batches(run.source, parts, settings), depth=2)) as loaded:
        items = iter(loaded)
        while True:
            asked = time.perf_counter()
            item = next(items, None)
            run.waited_seconds += time.perf_counter() - asked
            if item is None:
                break
            under_way.append((item, encoder.launch(item.images)) if isinstance(item, Batch) else item)
            while sum(isinstance(waiting, tuple) for waiting in under_way) > 1:
                collector.settle(under_way.popleft())
        while under_way:
            collector.settle(under_way.popleft())
    return collector.infos


class _Collector:
    """Gathers the latents of each part, hands whole parts to a writing thread, and keeps what was committed."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._latents: dict[int, dict[int, tuple[Tensor, Tensor | None] | None]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future[PartInfo]] = deque()
        self.infos: list[PartInfo] = []

    def __enter__(self) -> _Collector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            while self._writing:
                self.infos.append(self._writing.popleft().result())
        self._pool.shutdown(wait=True)

    def settle(self, item: tuple[Batch, PendingBatch] | PartLoaded) -> None:
        """Take a batch's latents, or commit the part that has all of its own."""
        if isinstance(item, PartLoaded):
            self._commit(item.part)
            return
        batch, pending = item
        encoded = pending.result()
        slots = self._latents.setdefault(batch.part.part.number, {})
        for i, slot in enumerate(batch.slots):
            flipped = None if encoded.flipped is None else encoded.flipped[i]
            slots[slot] = (encoded.latents[i], flipped) if encoded.finite[i] else None
        self._run.counts["encoded"] += sum(encoded.finite)
        self._run.count(len(batch.slots), len(batch.slots) - sum(encoded.finite))

    def _commit(self, progress: PartInProgress) -> None:
        skipped = sum(row.status != "ok" for row in progress.rows)
        self._run.count(skipped, skipped)
        content = _assemble(progress, self._latents.pop(progress.part.number, {}))
        while len(self._writing) >= 2:  # two parts in memory beside the one being filled, no more
            self.infos.append(self._writing.popleft().result())
        header = shard_header(self._run.recipe, self._run.fingerprint)
        channels = self._run.recipe["latent_channels"]
        self._writing.append(self._pool.submit(commit_part, self._run.cache, content, header, channels))


def _assemble(progress: PartInProgress, latents: dict[int, tuple[Tensor, Tensor | None] | None]) -> PartContent:
    """Stack each bucket's latents in source order and number the rows accordingly."""
    rows: list[Row] = []
    stacks: dict[Bucket, list[tuple[Tensor, Tensor | None]]] = {}
    for slot, row in enumerate(progress.rows):
        bucket = row.bucket
        if row.status != "ok" or bucket is None:
            rows.append(row)
            continue
        pair = latents[slot]
        if pair is None:
            detail = "the latent is NaN or Inf, in fp32 too"
            rows.append(replace(row, status="skipped", reason="not_finite", detail=detail))
            continue
        stack = stacks.setdefault(bucket, [])
        rows.append(replace(row, row=len(stack)))
        stack.append(pair)
    tensors: dict[str, Tensor] = {}
    for stack in stacks.values():
        height, width = stack[0][0].shape[-2:]
        tensors[tensor_name(height, width)] = torch.stack([plain for plain, _ in stack])
        mirrored = [flipped for _, flipped in stack if flipped is not None]
        if mirrored:
            tensors[tensor_name(height, width, flip=True)] = torch.stack(mirrored)
    return PartContent(
        name=progress.part.name, entries_sha256=entries_digest(progress.part), rows=rows, tensors=tensors
    )


def shard_header(recipe: dict[str, Any], recipe_fingerprint: str) -> dict[str, str]:
    """What every shard says of itself, so that a file that lost its cache can still be used."""
    return {
        "format": "dcae-cache",
        "version": str(recipe["format_version"]),
        "fingerprint": recipe_fingerprint,
        "model": recipe["model"],
        "weights_sha256": recipe["weights_sha256"],
        "spatial_compression_ratio": str(recipe["spatial_compression_ratio"]),
        "scaled": "true",
        "scaling_factor": repr(recipe["scaling_factor"]),
    }


def _open_encoder(run: _Run) -> LatentEncoder:
    device = pick_device(run.options.device)
    compute = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[run.recipe["compute_dtype"]]
    settings = EncoderSettings(
        dtype=run.config.dtype, scaling_factor=run.recipe["scaling_factor"], flip=run.config.flip
    )

    def load(dtype: torch.dtype) -> DCAE:
        return DCAE(run.checkpoint, device=device, dtype=dtype, with_decoder=False)

    return LatentEncoder(load(compute), settings, lambda: load(torch.float32))


def _batch_sizes(batch_size: int | None, device_type: str) -> Callable[[Bucket], int]:
    return lambda bucket: batch_size or auto_batch_size(bucket, device_type)


def default_workers() -> int:
    """Decoding threads when the user names no number: one per core this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finish(run: _Run, plan: Plan, infos: list[PartInfo]) -> dict[str, Any]:
    """Write skipped.jsonl and, last, the index over the committed parts."""
    index = build_index(run.cache, run.recipe, run.fingerprint, infos)
    num_parts = len(set(plan.table["part"].to_pylist()))
    index["source"] = {"uri": plan.source}
    index["complete"] = len(infos) == num_parts
    with replace_atomically(run.cache / "skipped.jsonl") as file:
        for info in infos:
            if not info.num_skipped:
                continue
            for row in read_rows(run.cache, info.name).to_pylist():
                if row["status"] != "ok":
                    line = {name: row[name] for name in ("key", "source", "reason", "detail")}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    save_index(run.cache, index)
    return index


def _summarise(run: _Run, index: dict[str, Any], changes: Changes, reused: int, seconds: float) -> Summary:
    totals = index["totals"]
    return Summary(
        out=str(run.cache),
        complete=index["complete"],
        encoded=run.counts["encoded"],
        skipped=index["skipped"],
        num_samples=totals["num_samples"],
        num_bytes=totals["num_bytes"],
        num_parts=totals["num_parts"],
        parts_reused=reused,
        vanished=changes.vanished,
        device=str(run.device) if run.device else None,
        seconds=seconds,
        waited_seconds=run.waited_seconds,
    )


def _check_skip_rate(summary: Summary, limit: float | None) -> None:
    skipped = sum(summary.skipped.values())
    total = skipped + summary.num_samples
    if limit is not None and total and skipped / total > limit:
        raise TooManySkippedError(
            f"{skipped} of {total} samples were skipped, {skipped / total:.2%}; --max-skip-rate allows {limit:.2%}. "
            f"The cache is usable; the reasons are in {Path(summary.out) / 'skipped.jsonl'}."
        )
