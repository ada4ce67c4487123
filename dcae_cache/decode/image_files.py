"""Stored latents back to image files, one for each key.

Needs the cache and its model, not the source. Knows nothing of scores.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import Image

from ..cache.brought import BroughtCache, brought
from ..compute.devices import pick_device
from ..errors import CacheError, UsageError
from ..files import make_folder, replace_atomically
from ..models.options import HubOptions
from ..reader.dataset import LatentDataset
from ..records import Bucket
from .cache_model import CacheModel

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"lossless": True}),
}
_PATTERN = re.compile(r"[*?\[]")
_UNSAFE = re.compile(r'[\x00-\x1f<>:"\\|?*]')  # in a file name, on one system or another
_LONGEST = 200  # bytes of a file name


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """How to decode. ``flipped``: the latents of the mirrored images. ``model``: where it is now, if it moved."""

    format: str = "png"
    flipped: bool = False
    overwrite: bool = False
    model: str | None = None
    device: str = "auto"
    hub: HubOptions = field(default_factory=HubOptions)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"`format` is one of {', '.join(FORMATS)}, not {self.format!r}.")


def decode_samples(
    cache: str | Path,
    keys: Sequence[str],
    out: str | Path,
    options: DecodeOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write the images that the named samples decode to; a key with ``*``, ``?`` or ``[`` names all that match it.

    Files are ``out``/key.format, as large as the sample's bucket; the paths are returned, in the order of the cache.
    ``progress`` hears (done, total). Raises CacheError for keys that the cache doesn't hold, UsageError for files that
    are there already, ModelError or VerificationError where the cache's model can't be had; nothing is written then.
    CacheError where the folder can't be written to.
    """
    with brought(cache) as here:
        return _decode(here, keys, Path(out), options or DecodeOptions(), progress)


def _decode(
    here: BroughtCache, keys: Sequence[str], out: Path, options: DecodeOptions, progress: Callable[[int, int], None]
) -> list[Path]:
    dataset = LatentDataset(here.folder, columns=("key",), flipped=options.flipped, allow_incomplete=True)
    chosen = find_samples(dataset, keys)
    files = {number: file_of(out, key, options.format) for key, number in chosen.items()}
    _refuse_existing(files.values(), options.overwrite)
    here.keep(dataset.part_of(number) for number in files)
    model = CacheModel(dataset.index, pick_device(options.device), options.model, options.hub)
    kind, settings = FORMATS[options.format]
    done = 0
    for numbers in _batches(dataset, sorted(files), model.automatic_batches()):
        images = model.decode(dataset.stack(numbers))
        for number, image in zip(numbers, images, strict=True):
            make_folder(files[number].parent)
            with replace_atomically(files[number]) as file:
                Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, kind, **settings)
            done += 1
            progress(done, len(files))
    return [files[number] for number in sorted(files)]


def find_samples(dataset: LatentDataset, keys: Sequence[str]) -> dict[str, int]:
    """Key -> number of the samples named, or matched by a pattern. Raises CacheError for one that isn't there."""
    exact = dataset.numbers_of(keys)
    patterns = [key for key in keys if key not in exact and _PATTERN.search(key)]
    missing = [key for key in keys if key not in exact and key not in patterns]
    found = dict(exact)
    matches = [re.compile(fnmatch.translate(pattern)).match for pattern in patterns]
    used: set[str] = set()
    for number in range(len(dataset)) if patterns else ():
        key = dataset.describe(number)["key"]
        hits = [pattern for pattern, match in zip(patterns, matches, strict=True) if match(key)]
        used.update(hits)
        if hits:
            found[key] = number
    missing += [pattern for pattern in patterns if pattern not in used]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CacheError(
            f"{dataset.cache} holds no latents of {missing[0]!r}{more}. Keys are in the tables, parts/*.parquet; "
            "skipped samples, with the reason, in skipped.jsonl."
        )
    return found


def file_of(out: Path, key: str, suffix: str) -> Path:
    """Where a key's image goes: below ``out`` whatever the key says. A key that no file can be called is changed, and
    ends in a digest of itself then, so that no two keys share a file."""
    names = [name for name in key.split("/") if name not in ("", ".")]
    safe = ["_" if name == ".." else _UNSAFE.sub("_", name) for name in names] or ["_"]
    if "/".join(safe) != key or max(len(name.encode()) for name in safe) > _LONGEST:
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        safe = [name.encode()[:_LONGEST].decode(errors="ignore") for name in safe]
        safe[-1] += f"-{digest}"
    return out.joinpath(*safe[:-1], f"{safe[-1]}.{suffix}")


def _refuse_existing(files: Iterable[Path], overwrite: bool) -> None:
    existing = [file for file in files if file.exists()]
    if existing and not overwrite:
        raise UsageError(
            f"{existing[0]} is there already ({len(existing)} files in all); choose another `out`, or `overwrite`"
        )


def _batches(
    dataset: LatentDataset, numbers: Sequence[int], batch_size: Callable[[Bucket], int]
) -> Iterator[list[int]]:
    """Numbers of one bucket each, as many as the device takes at once."""
    by_bucket = sorted(numbers, key=lambda number: (dataset.bucket_of(number), number))
    for (height, width), group in groupby(by_bucket, dataset.bucket_of):
        while batch := list(islice(group, batch_size(Bucket(height, width)))):
            yield batch
