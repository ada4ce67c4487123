"""A folder with every kind of odd or broken file a crawl brings home: each ends as the right row, the run with 0."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dcae_cache import encode_dataset
from dcae_cache.cache.index import load_index
from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.loading.rows import Known, LoadSettings, decode_sample
from dcae_cache.records import Part
from dcae_cache.sources import open_source
from helpers.images import encoded_image, make_image, tiny_config


def bomb_png() -> bytes:
    """A valid PNG header that claims 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(**options: object) -> Callable[[Path], None]:
    image = options.pop("image")
    assert isinstance(image, Image.Image)
    return lambda path: image.save(path, **options)


def written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(100, 200).save(path, exif=exif)


def animated(path: Path) -> None:
    make_image(90, 90, 1).save(path, save_all=True, append_images=[make_image(90, 90, 2)])


deep = np.linspace(0, 65535, 120 * 160).reshape(120, 160).astype(np.uint16)
palette = make_image(100, 140).convert("P")
palette.info["transparency"] = 0

# name -> (how it is made, status or reason, upright (height, width) if ok)
FILES: dict[str, tuple[Callable[[Path], object], str, tuple[int, int] | None]] = {
    "01_plain.jpg": (written(encoded_image(300, 200)), "ok", (300, 200)),
    "02_empty.jpg": (written(b""), "empty", None),
    "03_truncated.jpg": (written(encoded_image(300, 200)[:3000]), "truncated", None),
    "04_text.jpg": (written(b"this is no picture"), "not_an_image", None),
    "05_bomb.png": (written(bomb_png()), "too_many_pixels", None),
    "06_cmyk.jpg": (saved(image=make_image(120, 120).convert("CMYK")), "ok", (120, 120)),
    "07_deep.png": (saved(image=Image.fromarray(deep)), "ok", (120, 160)),
    "08_palette.png": (saved(image=palette, transparency=0), "ok", (100, 140)),
    "09_rotated.jpg": (rotated, "ok", (200, 100)),
    "10_animated.gif": (animated, "ok", (90, 90)),
    "11_pixel.png": (saved(image=Image.new("RGB", (1, 1), "red")), "ok", (1, 1)),
    "12_ribbon.png": (saved(image=Image.new("RGB", (20000, 10), "blue")), "ok", (10, 20000)),
    "13_grey.jpg": (saved(image=make_image(150, 150).convert("L")), "ok", (150, 150)),
    "14_alpha.webp": (saved(image=make_image(150, 150).convert("RGBA")), "ok", (150, 150)),
    "15_modern.avif": (saved(image=make_image(150, 160)), "ok", (150, 160)),
    "16_scan.tiff": (saved(image=make_image(130, 150).convert("1")), "ok", (130, 150)),
    "17_old.bmp": (saved(image=make_image(130, 150)), "ok", (130, 150)),
    "18_broken_link.jpg": (lambda path: path.symlink_to("nowhere"), "missing", None),
    "19_circle.jpg": (lambda path: path.symlink_to(path.name), "unreadable", None),
    "20_pipe.jpg": (os.mkfifo, "unreadable", None),
    "21_folder.jpg": (lambda path: path.mkdir(), "", None),  # a folder, whatever its name: no row
    "22_wrong_suffix.png": (written(encoded_image(140, 140)), "ok", (140, 140)),
    "23_half.png": (written(encoded_image(200, 200, kind="PNG")[:5000]), "truncated", None),
    "24_progressive.jpg": (saved(image=make_image(99, 77), progressive=True), "ok", (99, 77)),
}
NOT_UTF8 = b"25_caf\xe9.jpg"


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    for name, (make, _, _) in FILES.items():
        make(root / name)
    (root / "21_folder.jpg" / "inside.jpg").write_bytes(encoded_image(100, 100))
    (root / "loop").symlink_to(root)
    Path(os.fsdecode(os.fsencode(root) + b"/" + NOT_UTF8)).write_bytes(encoded_image(100, 100))
    return root


@pytest.fixture(scope="module")
def rows(odd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("caches") / "odd"
    summary = encode_dataset(odd_folder, out, tiny_config(), RunOptions(device="cpu", workers=2, part_size=10))
    assert summary.complete
    tables = [read_rows(out, part["name"]) for part in load_index(out)["parts"]]
    return {str(row["source"]): row for row in pa.concat_tables(tables).to_pylist()}


@pytest.mark.parametrize("name", [name for name, (_, expected, _) in FILES.items() if expected])
def test_the_right_row(rows: dict[str, dict[str, object]], name: str) -> None:
    _, expected, size = FILES[name]
    row = rows[name]
    if expected == "ok":
        assert (row["status"], row["reason"], (row["height"], row["width"])) == ("ok", None, size), row["detail"]
    else:
        assert (row["status"], row["reason"]) == ("skipped", expected), row["detail"]
        assert row["detail"]
        assert row["row"] is None


def test_nothing_is_lost_or_doubled(rows: dict[str, dict[str, object]]) -> None:
    expected = {name for name, (_, expected, _) in FILES.items() if expected}
    assert set(rows) == expected | {"21_folder.jpg/inside.jpg", "file:25_caf%E9.jpg"}
    assert rows["file:25_caf%E9.jpg"]["status"] == "ok"


def test_a_file_without_permission_is_skipped(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(2):
        (source / f"{number}.jpg").write_bytes(encoded_image(100, 100, number))
    (source / "1.jpg").chmod(0)
    folder = open_source(str(source))
    refs = list(folder.read(Part(0, tuple(folder.entries()))))
    user = os.geteuid()
    if user == 0:  # the superuser can read everything: be nobody for a moment
        for path in (source, *source.parents[:3]):
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
        os.seteuid(65534)
    try:
        settings = LoadSettings(tiny_config().fitting(32), 10**9, lambda bucket: 1, 1)
        ((row, pixels),) = decode_sample(refs[1], settings, Known())
    finally:
        os.seteuid(user)
    assert (row.status, row.reason, row.detail, pixels) == ("skipped", "unreadable", "Permission denied", None)
