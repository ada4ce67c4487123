"""MDS with one folder for each bucket, as PRX reads it; also for mosaicml-streaming (per_stream) and litdata.

    <w/h>/index.json, shard.*.mds      img_latent ndarray [2c, h, w] (mean, then zeros), raw; caption, key, label;
                                       original_height, original_width

mosaicml-streaming's own writer makes the files: extra ``mds``. A folder is named by its bucket's width over height
with three decimals, so two buckets of one ratio can't be told apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import CacheError, MissingExtraError, UsageError, one_line
from ..files import replace_atomically
from ..records import Bucket
from .exporter import Exporter
from .samples import ExportSample


class MdsExporter(Exporter):
    """See the module. Samples of a shard go to the folders of their buckets; each shard's files carry its number."""

    name = "mds"
    values = "raw"
    dtypes = ("fp32", "fp16")
    copies = 2  # mean and std

    def check(self) -> None:
        named: dict[str, Bucket] = {}
        for bucket in sorted(self.facts.buckets):
            other = named.setdefault(_ratio(bucket), bucket)
            if other != bucket:
                raise UsageError(
                    f"PRX names folders by aspect ratio, and {other} and {bucket} have the same. Export one "
                    f"resolution at a time: `where` 'bucket_height == {bucket.height}', for one."
                )
        _writer()

    def cautions(self) -> list[str]:
        return self.missing_captions()

    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        columns = {
            "img_latent": "ndarray:float16" if self.options.dtype == "fp16" else "ndarray:float32",
            "caption": "str",
            "key": "str",
            "label": "str",
            "original_height": "int",
            "original_width": "int",
        }
        with _writers(folder, columns) as writer_of:
            for sample in samples:
                writer_of(_ratio(sample.bucket)).write(self._values(sample))
        streams: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob("*/index.json")):
            streams[path.parent.name] = [_renamed(path.parent, entry, shard) for entry in _shards(path)]
            path.unlink()
        return {"streams": streams}

    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        streams: dict[str, list[dict[str, Any]]] = {}
        for shard in shards:
            for name, entries in shard["streams"].items():
                streams.setdefault(name, []).extend(entries)
        for name, entries in streams.items():
            with replace_atomically(folder / name / "index.json") as file:
                file.write(json.dumps({"version": 2, "shards": entries}, sort_keys=True).encode())
        return (
            f"PRX: local {folder.resolve()}, caption_keys caption, has_text_latents false, transforms empty. Values "
            f"are raw; the pipeline multiplies by {self.facts.scaling_factor:g}. Its RESOLUTION metadata assumes a "
            f"factor of 8, not {self.facts.ratio}."
        )

    def _values(self, sample: ExportSample) -> dict[str, Any]:
        both = torch.cat([sample.latents, torch.zeros_like(sample.latents)])
        if self.options.dtype == "fp16":
            both = both.half()
            if not torch.isfinite(both).all():
                raise CacheError(f"The raw latents of {sample.key!r} don't fit into fp16. Export with `dtype` fp32.")
        return {
            "img_latent": both.numpy(),
            "caption": sample.caption or "",
            "key": sample.key,
            "label": sample.label or "",
            "original_height": sample.height,
            "original_width": sample.width,
        }


def _ratio(bucket: Bucket) -> str:
    return f"{bucket.width / bucket.height:.3f}"


def _shards(path: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(path.read_bytes())["shards"]
    return entries


def _renamed(folder: Path, entry: dict[str, Any], shard: int) -> dict[str, Any]:
    """Give a file of the library's, which counts from 0 in each folder, a name that says which shard it is of."""
    old = entry["raw_data"]["basename"]
    new = f"shard.{shard:05d}.{old.split('.')[1]}.mds"
    (folder / old).rename(folder / new)
    entry["raw_data"]["basename"] = new
    return entry


def _writer() -> Any:
    try:
        from streaming import MDSWriter
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision that isn't torch's
        raise MissingExtraError(
            f"The format mds needs mosaicml-streaming ({one_line(error)}): pip install 'dcae-cache[mds]', with "
            "torchvision from where torch came from."
        ) from error
    return MDSWriter


@contextmanager
def _writers(folder: Path, columns: Mapping[str, str]) -> Iterator[Callable[[str], Any]]:
    """A function that gives the writer of a stream, made when it is first asked for; all are finished at the end, but
    not where something went wrong: an index of half a shard would look whole."""
    kind, made = _writer(), dict[str, Any]()

    def writer_of(name: str) -> Any:
        if name not in made:
            made[name] = kind(out=str(folder / name), columns=dict(columns), compression=None, hashes=["sha1"])
        return made[name]

    yield writer_of
    for writer in made.values():
        writer.finish()
