"""An import from beginning to end: list, look at some, plan, write part by part, index.

Run again it goes on behind the parts that are there. Knows nothing of any one format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cache.commits import split_by_commit
from ..cache.finalize import index_of, write_index
from ..cache.listing import list_entries
from ..cache.locks import locked
from ..cache.moments import ChannelMoments
from ..cache.parts import PARTS_FOLDER, PartContent, commit_part, shard_header, tensor_name
from ..cache.plan import Plan, entries_digest, load_plan, make_plan
from ..cache.recipe import fingerprint
from ..compute.devices import TORCH_DTYPES
from ..errors import CacheError, UsageError
from ..files import make_folder, remove_temporary_files
from ..models.options import HubOptions
from ..records import Bucket, DtypeName, Entry, Origin, Part, Row, part_name
from .checks import Expected, as_stored, check_scale, check_shape
from .imported_recipe import find_model, recipe_of_import
from .incoming import Importer, Incoming
from .lightningdit import LightningDiTImporter
from .npy_tree import NpyImporter
from .wids import WidsImporter

IMPORTERS: dict[str, type[Importer]] = {kind.name: kind for kind in (NpyImporter, LightningDiTImporter, WidsImporter)}
_LOOKED_AT = 512  # samples, spread over all, before anything is written
_DTYPES: dict[torch.dtype, DtypeName] = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """What is said of the latents. ``kind``: one of IMPORTERS; ``model``: the autoencoder that made them, as
    ``encode`` takes it; its files are needed only for names that ``dcae-cache models`` doesn't list. ``scaled``:
    whether they are multiplied by its scaling factor already.

    ``dtype``: of the stored latents, None: as found. ``scaling_factor``: where the model publishes none, or another.
    ``any_scale``: don't look at the standard deviation.
    """

    kind: str
    model: str
    scaled: bool
    dtype: DtypeName | None = None
    scaling_factor: float | None = None
    revision: str | None = None
    part_size: int = 1024
    any_scale: bool = False
    hub: HubOptions = field(default_factory=HubOptions)

    def __post_init__(self) -> None:
        if self.kind not in IMPORTERS:
            raise UsageError(f"There is no format {self.kind!r} to import; there are {', '.join(IMPORTERS)}.")
        if self.part_size < 1:
            raise UsageError(f"`part_size` must be at least 1, not {self.part_size}.")
        if self.scaling_factor is not None and not self.scaling_factor > 0:
            raise UsageError(f"`scaling_factor` must be above 0, not {self.scaling_factor}.")
        if self.dtype is not None and self.dtype not in TORCH_DTYPES:
            raise UsageError(f"`dtype` is one of {', '.join(TORCH_DTYPES)}, not {self.dtype!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """What the cache holds. ``parts_reused`` were there already."""

    out: str
    num_samples: int
    num_parts: int
    parts_reused: int
    num_bytes: int
    dtype: str
    scaling_factor: float


def import_cache(
    folder: str | Path, out: str | Path, request: ImportRequest, progress: Progress = lambda done, total: None
) -> ImportSummary:
    """Make the cache ``out`` of the latents in ``folder``. ``progress`` hears (samples done, of how many).

    Raises UsageError where ``out`` holds something else, or where the latents' standard deviation speaks against what
    is said of them; CacheError for files that can't be read, aren't of the model's shape, or hold NaN; ModelError
    where the model isn't known. The cache is finished, that is: has an index, only if nothing was raised.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise UsageError(f"`folder` {folder} is no folder.")
    model = find_model(request.model, request.scaling_factor, request.revision, request.hub)
    expected = Expected(model, request.scaled)
    importer = IMPORTERS[request.kind](folder)
    listing = list_entries(importer.entries())
    seen = _look(importer, make_plan(listing, {}, Origin(""), 1), expected)
    if not request.any_scale:
        check_scale(seen.moments, expected)
    facts = {"format": request.kind, "scaled": request.scaled, "flip": importer.with_mirrored}
    recipe = recipe_of_import(
        request.model, model, request.dtype or _dtype_of(seen.dtype, folder), seen.buckets, facts
    )
    plan = make_plan(listing, recipe, Origin(str(folder.resolve())), request.part_size)
    _refuse_other_folder(out, plan)
    make_folder(out / PARTS_FOLDER)
    with locked(out):
        remove_temporary_files(out)
        remove_temporary_files(out / PARTS_FOLDER)
        plan.save(out)
        return _fill(out, plan, importer, expected, request, progress)


def _fill(
    out: Path, plan: Plan, importer: Importer, expected: Expected, request: ImportRequest, progress: Progress
) -> ImportSummary:
    done, todo = split_by_commit(plan, out, fingerprint(plan.recipe))
    infos = {info.name: info for info in done}
    count, channels = sum(info.num_samples for info in done), expected.model.latent_channels
    header = shard_header(plan.recipe, fingerprint(plan.recipe))
    for number in todo:
        part = plan.part(number)
        content = _content(part, importer, expected, plan.recipe["dtype"], as_found=request.dtype is None)
        infos[part.name] = commit_part(out, content, header, channels)
        count += len(part.entries)
        progress(count, plan.num_entries)
    ordered = [infos[part_name(number)] for number in plan.part_numbers]
    if not request.any_scale:
        check_scale(ChannelMoments.merge([info.moments for info in ordered], channels), expected)
    index = index_of(out, plan, plan.recipe, ordered)
    write_index(out, index, ordered)
    return ImportSummary(
        out=str(out),
        num_samples=index["totals"]["num_samples"],
        num_parts=len(ordered),
        parts_reused=len(done),
        num_bytes=index["totals"]["num_bytes"],
        dtype=plan.recipe["dtype"],
        scaling_factor=expected.model.scaling_factor,
    )


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """What some samples, spread over all, say of the rest."""

    dtype: torch.dtype  # of the first
    buckets: frozenset[Bucket]
    moments: ChannelMoments


def _look(importer: Importer, plan: Plan, expected: Expected) -> _LookedAt:
    """Read some samples. Raises CacheError for any that isn't of the model's shape."""
    numbers = np.unique(np.linspace(0, plan.num_entries - 1, _LOOKED_AT).astype(int)).tolist()
    dtypes: list[torch.dtype] = []
    buckets: set[Bucket] = set()
    moments = []
    for number in numbers:
        entries = plan.part(number).entries
        sample = next(iter(importer.read(entries)))
        where = f"{importer.folder}: {entries[0].key}"
        check_shape(sample.latents, expected, where)
        dtypes.append(sample.latents.dtype)
        stored = as_stored(sample.latents, expected, torch.float32, where)
        moments.append(ChannelMoments.of([stored[None]], expected.model.latent_channels))
        buckets.add(expected.bucket_of(stored))
    return _LookedAt(dtypes[0], frozenset(buckets), ChannelMoments.merge(moments, expected.model.latent_channels))


def _content(part: Part, importer: Importer, expected: Expected, dtype: DtypeName, *, as_found: bool) -> PartContent:
    """A part's rows and tensors; rows of one size number from 0 in the order of the entries."""
    latents: dict[str, list[Tensor]] = {}
    rows: list[Row] = []
    for entry, sample in zip(part.entries, importer.read(part.entries), strict=True):
        where = f"{importer.folder}: {entry.key}"
        check_shape(sample.latents, expected, where)
        if as_found and _DTYPES.get(sample.latents.dtype) != dtype:
            raise CacheError(f"{where} is of {sample.latents.dtype}, others of {dtype}. Choose one with `dtype`.")
        height, width = sample.latents.shape[1:]
        for flip, each in ((False, sample.latents), (True, sample.mirrored)):
            if each is not None:
                stored = as_stored(each, expected, TORCH_DTYPES[dtype], where)
                latents.setdefault(tensor_name(height, width, flip=flip), []).append(stored)
        row = len(latents[tensor_name(height, width)]) - 1
        rows.append(_row(entry, sample, expected.bucket_of(sample.latents), row))
    tensors = {name: torch.stack(each) for name, each in latents.items()}
    return PartContent(name=part.name, entries_sha256=entries_digest(part), rows=rows, tensors=tensors)


def _row(entry: Entry, sample: Incoming, bucket: Bucket, row: int) -> Row:
    return Row(
        key=entry.key,
        status="ok",
        bucket_height=bucket.height,
        bucket_width=bucket.width,
        row=row,
        height=sample.height,
        width=sample.width,
        caption=sample.caption,
        label=sample.label,
        attributes=json.dumps(dict(sample.attributes), ensure_ascii=False) if sample.attributes else None,
        source=entry.location,
    )


def _dtype_of(found: torch.dtype, folder: Path) -> DtypeName:
    if found not in _DTYPES:
        raise CacheError(f"{folder} holds latents of {found}, which a cache can't: choose another with `dtype`.")
    return _DTYPES[found]


def _refuse_other_folder(out: Path, plan: Plan) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"`out` {out} is a file; expected a folder that doesn't exist yet, or an empty one.")
    known = load_plan(out)
    if known is not None:
        if (known.table, dict(known.recipe), known.origin) != (plan.table, dict(plan.recipe), plan.origin):
            raise UsageError(
                f"`out` {out} holds another cache, or one of these files as they were. Nothing was written; choose "
                "another folder."
            )
        return
    strangers = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    if [name for name in strangers if name != PARTS_FOLDER]:
        raise UsageError(
            f"`out` {out} holds other files ({', '.join(strangers[:3])}). Nothing was written; choose an empty or new "
            "folder."
        )
