"""Ways to make a cache wrong, each with every hash, sum and count made to agree, and with a word that must name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from dcae_cache.cache.parts import table_path
from helpers.false_caches import change_rows, falsify, rewrite_header
from helpers.hostile import change_index

FIRST, SECOND = "part-000000", "part-000001"
Rows = list[dict[str, Any]]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Corruption:
    """``apply`` makes the cache wrong; one of verify's findings must have ``named`` in it."""

    name: str
    apply: Callable[[Path], None]
    named: str


CORRUPTIONS: list[Corruption] = []


def _add(name: str, apply: Callable[[Path], None], named: str) -> None:
    CORRUPTIONS.append(Corruption(name, apply, named))


# --- the shard's header, the index ---------------------------------------------------------------------------------

for _name, _value in {
    "scaling_factor": "0.5",
    "scaled": "false",
    "model": "f32c32-mix",
    "weights_sha256": "0" * 64,
    "spatial_compression_ratio": "64",
    "fingerprint": "1" * 64,
    "format": "other",
    "version": "9",
}.items():
    _add(
        f"header: {_name}",
        lambda cache, name=_name, value=_value: rewrite_header(cache, FIRST, {name: value}),
        f"the shard says of itself {_name}",
    )
_add("header: empty", lambda cache: rewrite_header(cache, FIRST, None), "the shard says of itself")


def _index(*path: str, value: Any) -> Callable[[Path], None]:
    def apply(cache: Path) -> None:
        def change(index: Any) -> None:
            for step in path[:-1]:
                index = index[step]
            index[path[-1]] = value

        change_index(cache, change)

    return apply


for _path, _new in {
    ("latent", "scaling_factor"): 0.5,
    ("latent", "scaled"): False,
    ("latent", "spatial_compression_ratio"): 64,
    ("latent", "channels"): 16,
    ("latent", "dtype"): "bf16",
    ("model", "weights_sha256"): "0" * 64,
    ("model", "name"): "f32c32-mix",
    ("recipe", "scaling_factor"): 0.5,
    ("recipe", "resolution"): 256,
    ("recipe", "bucket"): "square",
    ("recipe", "weights_sha256"): "0" * 64,
    ("recipe", "flip"): False,
    ("recipe", "compute_dtype"): "bf16",
    ("totals", "num_samples"): 99,
    ("totals", "num_skipped"): 0,
    ("buckets",): {"128x160": 1},
    ("skipped",): {},
    ("statistics", "mean"): [0.0] * 32,
    ("statistics", "std"): [1.0] * 32,
    ("plan_sha256",): "0" * 64,
}.items():
    _add(f"index: {'.'.join(_path)}", _index(*_path, value=_new), "")


# --- rows ----------------------------------------------------------------------------------------------------------


def _rows(change: Callable[[Rows], None], part: str = FIRST) -> Callable[[Path], None]:
    return lambda cache: change_rows(cache, part, change)


def _kept(rows: Rows) -> Rows:
    return [row for row in rows if row["status"] == "ok"]


def _shift(name: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        kept = _kept(rows)
        values = [row[name] for row in kept]
        for row, value in zip(kept, values[1:] + values[:1], strict=True):
            row[name] = value

    return change


def _swap(name: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        first, second = _kept(rows)[0], next(row for row in _kept(rows) if row[name] != _kept(rows)[0][name])
        first[name], second[name] = second[name], first[name]

    return change


def _all(name: str, value: Callable[[Any], Any]) -> Callable[[Rows], None]:
    return lambda rows: [row.update({name: value(row[name])}) for row in _kept(rows)] and None  # type: ignore[func-returns-value]


def _one(name: str, value: Callable[[Any], Any]) -> Callable[[Rows], None]:
    return lambda rows: _kept(rows)[1].update({name: value(_kept(rows)[1][name])})


for _column, _other in {"caption": "another", "label": "another", "attributes": '{"stars": 77}'}.items():
    _plural = _column if _column == "attributes" else f"{_column}s"
    _word = f"its {_column} is recorded as"
    _add(f"{_plural} shifted", _rows(_shift(_column)), _word)
    _add(f"{_plural} swapped", _rows(_swap(_column)), _word)
    _add(f"{_plural} emptied", _rows(_all(_column, lambda old: None)), _word)
    _add(f"{_plural}: one emptied", _rows(_one(_column, lambda old: None)), _word)
    _add(f"{_plural}: one edited", _rows(_one(_column, lambda old, new=_other: new)), _word)
    _add(f"{_plural}: all alike", _rows(_all(_column, lambda old, new=_other: new)), _word)
_add("captions: cut off", _rows(_all("caption", lambda old: old[:9])), "its caption is recorded as")
_add("captions: upper case", _rows(_all("caption", str.upper)), "its caption is recorded as")
_add("captions: a space more", _rows(_one("caption", lambda old: old + " ")), "its caption is recorded as")
_as_text = _one("attributes", lambda old: old.replace('"stars": ', '"stars": "').replace("}", '"}'))
_add("attributes: a number as text", _rows(_as_text), "its attributes is recorded as")
_add("captions of the other part", _rows(_shift("caption"), SECOND), "its caption is recorded as")

for _column in ("height", "width", "source_bytes"):
    _add(f"{_column} of one row", _rows(_one(_column, lambda old: old + 1)), f"its {_column} is recorded as")
    _add(f"{_column} of all rows", _rows(_all(_column, lambda old: 2 * old)), f"its {_column} is recorded as")
    _add(f"{_column}: none", _rows(_one(_column, lambda old: None)), f"its {_column} is recorded as")


def _turn_sizes(rows: Rows) -> None:
    for row in _kept(rows):
        row["height"], row["width"] = row["width"], row["height"]


_add("height and width swapped", _rows(_turn_sizes), "its height is recorded as")
_add("sources shifted", _rows(_shift("source")), "its source is recorded as")
_add("source of one row", _rows(_one("source", lambda old: "elsewhere.jpg")), "its source is recorded as")
_add("source_hash of one row", _rows(_one("source_hash", lambda old: "0" * 64)), "has changed since")
_add("source_hashes shifted", _rows(_shift("source_hash")), "has changed since")
_add("shard of one row", _rows(_one("shard", lambda old: "00007")), "its shard is recorded as")
for _column in ("crop_top", "crop_left", "resized_height", "resized_width"):
    _add(f"{_column} of one row", _rows(_one(_column, lambda old: old + 1)), "bucket and crop")
_add("keys swapped", _rows(_swap("key")), "")
_add("keys shifted", _rows(_shift("key")), "")
_add("one key renamed", _rows(_one("key", lambda old: old + "x")), "has no row for")
_add("one key of another part", _rows(_one("key", lambda old: "class0/img009")), "")
_add("rows in another order", _rows(lambda rows: rows.reverse()), "not in the order of the plan")


def _skipped(rows: Rows) -> dict[str, Any]:
    return next(row for row in rows if row["status"] != "ok")


_add("a skipped row missing", _rows(lambda rows: rows.remove(_skipped(rows))), "")
_add("reason of a skipped row", _rows(lambda rows: _skipped(rows).update(reason="dull")), "its rows were skipped as")
_add("detail of a skipped row", _rows(lambda rows: _skipped(rows).update(detail="dull")), "")


def _without_row(cache: Path, *, turned: bool) -> None:
    """Take the last row of a bucket out of tensor and table, or leave it in the table as a skipped one."""
    table = pq.read_table(table_path(cache, FIRST))
    rows = _kept(table.to_pylist())
    bucket = rows[0]["bucket_height"], rows[0]["bucket_width"]
    last = max(
        (row for row in rows if (row["bucket_height"], row["bucket_width"]) == bucket), key=lambda row: row["row"]
    )
    side = f"{bucket[0] // 32}x{bucket[1] // 32}"

    def cut(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(f".{side}"):
                tensors[name] = tensors[name][:-1].contiguous()

    def turn(rows: Rows) -> None:
        row = next(row for row in rows if row["key"] == last["key"])
        if not turned:
            rows.remove(row)
            return
        kept = {"key", "source", "shard", "source_bytes", "source_hash", "caption", "label", "attributes"}
        row.update({name: None for name in row if name not in kept} | {"status": "skipped", "reason": "corrupt"})

    change_rows(cache, FIRST, turn, recount=True)
    falsify(cache, FIRST, cut)


_add("a row missing", lambda cache: _without_row(cache, turned=False), "has no row for")
_add(
    "a row turned to skipped", lambda cache: _without_row(cache, turned=True), "was skipped as corrupt, but its image"
)


# --- latents -------------------------------------------------------------------------------------------------------


def _latents(change: Callable[[torch.Tensor], torch.Tensor], only: str = "") -> Callable[[Path], None]:
    def every(tensors: Tensors) -> None:
        for name in tensors:
            if name.startswith(only):
                tensors[name] = change(tensors[name]).to(tensors[name].dtype).contiguous()

    def apply(cache: Path) -> None:
        for part in (FIRST, SECOND):
            falsify(cache, part, every)

    return apply


def _noise(share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x + share * x.std() * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def _channel(number: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, number] = change(x[:, number])
        return x

    return apply


def _first(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.cat([change(x[:1]), x[1:]])


def _cell(x: torch.Tensor, amount: float) -> torch.Tensor:
    x = x.clone()
    x[0, 0, 0, 0] += amount
    return x


_TOGETHER = "all decoded samples"
for _name, _change, _named in (
    ("latents times 1.003", lambda x: x * 1.003, "times 1.003"),
    ("latents times 0.997", lambda x: x * 0.997, "times 0.997"),
    ("latents times 1.0005", lambda x: x * 1.0005, _TOGETHER),
    ("latents times 1.0001", lambda x: x * 1.0001, ""),
    ("latents times 1.01", lambda x: x * 1.01, "times 1.01"),
    ("latents divided by the factor", lambda x: x / 0.5, "times 2"),
    ("latents negated", lambda x: -x, "is not its image's latent"),
    ("all zero", torch.zeros_like, "is not its image's latent"),
    ("channel 3 off by 0.05", _channel(3, lambda x: x + 0.05), _TOGETHER),
    ("channel 3 off by 0.003", _channel(3, lambda x: x + 0.003), _TOGETHER),
    ("channel 3 off by 0.0001", _channel(3, lambda x: x + 0.0001), ""),
    ("all channels off by 0.003", lambda x: x + 0.003, _TOGETHER),
    ("channel 5 times 1.005", _channel(5, lambda x: x * 1.005), _TOGETHER),
    ("channel 7 zero", _channel(7, torch.zeros_like), ""),
    ("noise of 5 %", _noise(0.05), ""),
    ("noise of 0.5 %", _noise(0.005), _TOGETHER),
    ("noise of 0.1 %", _noise(0.001), ""),
    ("rounded to bf16", lambda x: x.bfloat16().float(), ""),
    ("truncated to bf16", lambda x: (x.view(torch.int32) & -65536).view(torch.float32), "times 0.99"),
    ("rounded to 8 bits", lambda x: (x * 20).round() / 20, ""),
    ("clipped at 2", lambda x: x.clamp(-2, 2), ""),
    ("flipped left-right", lambda x: x.flip(3), ""),
    ("upside down", lambda x: x.flip(2), "upside down"),
    ("shifted by a cell", lambda x: x.roll(1, 3), "is not its image's latent"),
    ("channels rolled", lambda x: x.roll(1, 1), "is not its image's latent"),
    ("rows rolled", lambda x: x.roll(1, 0), "stands in the row of"),
    ("first row zero", _first(torch.zeros_like), "is not its image's latent"),
    ("first row times 1.01", _first(lambda x: x * 1.01), "times 1.01"),
    ("one cell off by 3", lambda x: _cell(x, 3.0), "is not its image's latent"),
    ("one cell off by 0.02", lambda x: _cell(x, 0.02), ""),
):
    _add(_name, _latents(_change), _named)
_add("mirrored latents times 1.003", _latents(lambda x: x * 1.003, "latents_flip."), "of its mirrored image")
_add("mirrored latents are the plain ones", _latents(lambda x: x.flip(3), "latents_flip."), "of its mirrored image")
