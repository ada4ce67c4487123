"""The same photos from tars, from parquet files and from parquet files streamed, one run of f32c32-tiny each; and how
long it takes to list a folder of a million files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from dcae_cache import encode_dataset
from dcae_cache.config import EncodeConfig, RunOptions
from dcae_cache.sources import SourceOptions, open_source

from .encode import image_paths, make_photos
from .memory import peak_mib
from .report import judge, show_table

SOURCES = ("tars", "parquet", "parquet, streamed")
LIST_SECONDS, LIST_MIB = 10.0, 500.0  # of a million files


def main(args: list[str]) -> None:
    """Run each in a process of its own and print a table, or be that process."""
    options = _parse(args)
    if options.variant:
        print(json.dumps(_list(options.place) if options.variant == "list" else _encode(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        photos = options.photos or make_photos(Path(scratch) / "made", 200)
        places = {"tars": _tars(photos, Path(scratch)), "parquet": _parquet(photos, Path(scratch))}
        lines = []
        for name in SOURCES:
            found = _in_process(name, places[name.partition(",")[0]])
            waited = f"{found['waited'] / found['seconds']:.0%}"
            lines.append((name, f"{found['images'] / found['seconds']:.1f}", waited, f"{found['peak_mib']:.0f}"))
        show_table(("source", "images/s", "waited for input", "peak MiB"), lines)
        if options.files:
            found = _in_process("list", _empty_files(Path(scratch) / "many", options.files))
            print(f"listing {options.files:,} files: {found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB")
            share = options.files / 1e6
            judge("seconds to list a million files", found["seconds"] / share, "<=", LIST_SECONDS)
            judge("MiB while listing", found["peak_mib"], "<=", LIST_MIB)


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench sources", description=__doc__)
    parser.add_argument("--photos", type=Path, help="folder of photos; made ones unless given")
    parser.add_argument("--files", type=int, default=1_000_000, help="of the folder that is listed; 0: none")
    parser.add_argument("--variant", choices=(*SOURCES, "list"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(args)


def _in_process(variant: str, place: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "scripts.benchmarks", "sources", "--variant", variant, "--place", str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _encode(options: argparse.Namespace) -> dict[str, float]:
    config = EncodeConfig(model="f32c32-tiny", resolution=256, dtype="fp32")
    reading = SourceOptions(streaming="streamed" in options.variant)
    source = str(options.place / "{0..3}.tar" if options.variant == "tars" else options.place)
    with tempfile.TemporaryDirectory() as out:
        summary = encode_dataset(source, Path(out) / "out", config, RunOptions(device="cpu"), source_options=reading)
    return {
        "images": summary.encoded,
        "seconds": summary.seconds,
        "waited": summary.idle_share * summary.seconds,
        "peak_mib": _peak(),
    }


def _list(place: Path) -> dict[str, float]:
    started = time.perf_counter()
    count = sum(1 for _ in open_source(str(place)).entries())
    return {"images": count, "seconds": time.perf_counter() - started, "peak_mib": _peak()}


def _peak() -> float:
    return peak_mib()


def _tars(photos: Path, scratch: Path) -> Path:
    """Four tars in img2dataset's layout."""
    folder = scratch / "tars"
    folder.mkdir()
    paths = image_paths(photos)
    for number in range(4):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for index, path in enumerate(paths[number::4]):
                tar.add(path.resolve(), f"{number:05d}{index:04d}.jpg")
    return folder


def _parquet(photos: Path, scratch: Path) -> Path:
    """Three files with a column of images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = scratch / "parquet"
    folder.mkdir()
    paths = image_paths(photos)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(3):
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths[number::3]]
        pq.write_table(pa.table({"image": pa.array(images, kind)}), folder / f"{number}.parquet")
    return folder


def _empty_files(root: Path, count: int) -> Path:
    for first in range(0, count, 1000):
        folder = root / f"{first // 1000:05d}"
        folder.mkdir(parents=True)
        for number in range(first, min(first + 1000, count)):
            (folder / f"{number:07d}.jpg").touch()
    return root
