"""The contract of all sources: the same images give the same latents, keys, captions, labels, sizes and crops."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dcae_cache.cache.parts import read_rows
from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from dcae_cache.errors import SourceError
from dcae_cache.reader.dataset import LatentDataset
from dcae_cache.records import Part
from dcae_cache.sources import SourceOptions, open_source
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from helpers.images import SIZES, encoded_image, tiny_config

COUNT = 48
COMPARED = ("caption", "label", "attributes", "height", "width", "resized_height", "resized_width", "crop_top")
COMPARED += ("crop_left", "bucket_height", "bucket_width", "status", "reason", "source_bytes", "source_hash")


@dataclass(frozen=True)
class Picture:
    key: str
    data: bytes
    caption: str
    label: str
    attributes: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        return {"key": self.key, "caption": self.caption, "label": self.label, **self.attributes}


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """48 images of mixed sizes, one of them broken, sorted by key."""
    made = [
        Picture(
            f"class{number % 3}/img{number:03d}",
            encoded_image(*SIZES[number % len(SIZES)], seed=number),
            f'picture "{number}", naïve',
            f"class{number % 3}",
            {"score": number / 7, "tags": ["a", str(number)]},
        )
        for number in range(COUNT)
    ]
    made[20] = Picture(made[20].key, made[20].data[:300], made[20].caption, made[20].label, made[20].attributes)
    return sorted(made, key=lambda picture: picture.key)


def _write_folder(root: Path, pictures: list[Picture]) -> str:
    for picture in pictures:
        path = root / f"{picture.key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.data)
        path.with_suffix(".txt").write_text(picture.caption, encoding="utf-8")
        path.with_suffix(".json").write_text(json.dumps(picture.attributes))
    return str(root)


def _write_remote_folder(root: Path, pictures: list[Picture]) -> str:
    """To a store of this process; each test has a folder of its own in it."""
    import fsspec

    url = f"memory:/{root}"
    fsspec.filesystem("memory").put(_write_folder(root, pictures), url, recursive=True)
    return url


def _write_tars(root: Path, pictures: list[Picture]) -> str:
    for number in range(3):
        with tarfile.open(root / f"{number:02d}.tar", "w") as archive:
            for picture in pictures[number * 16 : number * 16 + 16]:
                notes = json.dumps(picture.attributes).encode()
                for suffix, data in (
                    ("jpg", picture.data),
                    ("txt", picture.caption.encode()),
                    ("json", notes),
                    ("cls", picture.label.encode()),
                ):
                    info = tarfile.TarInfo(f"{picture.key}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return f"{root}/{{00..02}}.tar"


def _columns(pictures: list[Picture]) -> dict[str, list[Any]]:
    return {name: [picture.row[name] for picture in pictures] for name in pictures[0].row}


def _write_parquet(root: Path, pictures: list[Picture]) -> str:
    for number in range(2):
        some = pictures[number * 24 : number * 24 + 24]
        images = [{"bytes": picture.data, "path": None} for picture in some]
        pq.write_table(pa.table({"image": images, **_columns(some)}), root / f"{number}.parquet")
    return str(root)


def _write_saved(root: Path, pictures: list[Picture]) -> str:
    import datasets

    columns = _columns(pictures)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "key": datasets.Value("string"),
            "caption": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["class0", "class1", "class2"]),
            "score": datasets.Value("float64"),
            "tags": datasets.List(datasets.Value("string")),
        }
    )
    images = [{"bytes": picture.data, "path": None} for picture in pictures]
    made = datasets.Dataset.from_dict({"image": images, **columns}, features=features)
    made.save_to_disk(str(root / "saved"), num_shards=2)
    return str(root / "saved")


def _write_images(root: Path, pictures: list[Picture]) -> list[dict[str, Any]]:
    for number, picture in enumerate(pictures):
        (root / f"{number}.bin").write_bytes(picture.data)
    return [{"file_name": f"{number}.bin", **picture.row} for number, picture in enumerate(pictures)]


def _write_jsonl(root: Path, pictures: list[Picture]) -> str:
    rows = _write_images(root, pictures)
    (root / "table.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(root / "table.jsonl")


def _write_path_table(root: Path, pictures: list[Picture]) -> str:
    rows = _write_images(root, pictures)
    pq.write_table(pa.Table.from_pylist(rows), root / "paths.parquet", row_group_size=10)
    return str(root / "paths.parquet")


KINDS: dict[str, tuple[Callable[[Path, list[Picture]], str], SourceOptions]] = {
    "remote folder": (_write_remote_folder, SourceOptions()),
    "tars": (_write_tars, SourceOptions()),
    "parquet": (_write_parquet, SourceOptions()),
    "streaming": (_write_parquet, SourceOptions(streaming=True)),
    "save_to_disk": (_write_saved, SourceOptions()),
    "save_to_disk, streaming": (_write_saved, SourceOptions(streaming=True)),
    "jsonl": (_write_jsonl, SourceOptions()),
    "parquet of paths": (_write_path_table, SourceOptions()),
}


@pytest.fixture(scope="module", autouse=True)
def _datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def reference(pictures: list[Picture], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the folder, which the others are compared with."""
    uri = _write_folder(tmp_path_factory.mktemp("folder"), pictures)
    return _encode(uri, tmp_path_factory.mktemp("caches") / "folder", SourceOptions())


def _encode(uri: str, out: Path, reading: SourceOptions) -> Path:
    options = RunOptions(device="cpu", workers=2, part_size=20, batch_size=4)
    summary = encode_dataset(uri, out, tiny_config(), options, source_options=reading)
    assert (summary.complete, summary.num_samples, sum(summary.skipped.values())) == (True, COUNT - 1, 1)
    return out


def _rows(cache: Path) -> dict[str, dict[str, Any]]:
    names = [path.stem for path in sorted((cache / "parts").glob("*.parquet"))]
    rows = [row for name in names for row in read_rows(cache, name).to_pylist()]
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


def _latents(cache: Path) -> dict[str, torch.Tensor]:
    return {sample["key"]: sample["latents"] for sample in LatentDataset(cache, columns=("key",))}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_give_the_same_cache(
    kind: str, pictures: list[Picture], reference: Path, tmp_path: Path
) -> None:
    write, reading = KINDS[kind]
    (tmp_path / "source").mkdir()
    cache = _encode(write(tmp_path / "source", pictures), tmp_path / "out", reading)
    rows, expected = _rows(cache), _rows(reference)
    assert list(rows) == list(expected) == [picture.key for picture in pictures]
    for key, row in rows.items():
        assert {name: row[name] for name in COMPARED} == {name: expected[key][name] for name in COMPARED}, key
    latents, wanted = _latents(cache), _latents(reference)
    assert latents.keys() == wanted.keys()
    for key, latent in latents.items():
        assert torch.allclose(latent, wanted[key], rtol=0, atol=1e-5 * float(wanted[key].abs().max())), key


@pytest.mark.parametrize("kind", KINDS)
def test_limit_and_a_second_run(kind: str, pictures: list[Picture], tmp_path: Path) -> None:
    write, reading = KINDS[kind]
    (tmp_path / "source").mkdir()
    uri = write(tmp_path / "source", pictures)
    options = RunOptions(device="cpu", workers=2, part_size=4, limit=10)
    first = encode_dataset(uri, tmp_path / "out", tiny_config(), options, source_options=reading)
    again = encode_dataset(uri, tmp_path / "out", tiny_config(), options, source_options=reading)
    assert (first.num_samples, again.num_samples, again.encoded, again.vanished) == (10, 10, 0, 0)
    assert list(_rows(tmp_path / "out")) == [picture.key for picture in pictures[:10]]
    assert verify_cache(tmp_path / "out", VerifyOptions(device="cpu", samples=5)).ok


@pytest.mark.parametrize("kind", KINDS)
def test_listing_opens_no_image(kind: str, pictures: list[Picture], tmp_path: Path) -> None:
    """Bytes that are no image at all are listed and handed on; only the pipeline's decoder looks at them."""
    write, reading = KINDS[kind]
    junk = [Picture(p.key, b"junk", p.caption, p.label, p.attributes) for p in pictures]
    (tmp_path / "source").mkdir()
    source = open_source(write(tmp_path / "source", junk), reading)
    refs = list(source.read(Part(0, tuple(source.entries()))))
    assert len(refs) == COUNT
    assert {ref.load().data for ref in refs} == {b"junk"}
    with refs[0].open() as file:
        assert file.read() == b"junk"


# --- tables --------------------------------------------------------------------------------------------------------


def _table(path: Path, text: str) -> str:
    path.write_bytes(text.encode("utf-8-sig" if path.suffix == ".csv" else "utf-8"))
    return str(path)


def test_a_csv_with_quotes_line_breaks_and_gaps(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "b c.jpg").write_bytes(b"B")
    uri = _table(tmp_path / "t.csv", 'path,text,label,note\na.jpg,"one,\n""two""",3,\n\nsub/../b c.jpg,,,x\n')
    source = open_source(uri)
    entries = tuple(source.entries())
    assert [entry.key for entry in entries] == ["a", "b c"]
    first, second = (ref.load() for ref in source.read(Part(0, entries)))
    assert (first.data, first.caption, first.label, first.attributes) == (b"A", 'one,\n"two"', "3", {})
    assert (second.data, second.caption, second.label, second.attributes) == (b"B", None, None, {"note": "x"})
    (only,) = source.read(Part(0, entries[1:]))
    assert only.load().data == b"B", "any row can be read by itself"


def test_urls_are_fetched_and_a_dead_one_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcae_cache import remote
    from helpers.file_server import serve

    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.jpg").write_bytes(encoded_image(96, 128))
    with serve(tmp_path / "web") as server:
        rows = [{"url": f"{server.url}/a.jpg?x=1", "caption": "here"}, {"url": f"{server.url}/gone.jpg"}, {"url": ""}]
        uri = _table(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
        summary = encode_dataset(uri, tmp_path / "out", tiny_config(), RunOptions(device="cpu"))
    assert (summary.encoded, summary.skipped) == (1, {"missing": 1, "unreadable": 1})
    assert LatentDataset(tmp_path / "out")[0]["caption"] == "here"


def test_an_edited_row_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded_image(96, 128))
    uri = _table(tmp_path / "t.jsonl", '{"path": "a.jpg", "caption": "old"}\n')
    encode_dataset(uri, tmp_path / "out", tiny_config(), RunOptions(device="cpu"))
    _table(tmp_path / "t.jsonl", '{"path": "a.jpg", "caption": "new"}\n')
    encode_dataset(uri, tmp_path / "out", tiny_config(), RunOptions(device="cpu"))
    assert LatentDataset(tmp_path / "out")[0]["caption"] == "new"


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        ("t.csv", "a,b\n1,2\n", {}, r"no column of image paths .* it has: a, b\. Choose one with `image_column`"),
        ("t.csv", "path,b\nx.jpg,2\n", {"image_column": "c"}, r"no column c in .*t\.csv; it has: path, b"),
        ("t.csv", "path,b\nx.jpg,2\n", {"caption_column": "text"}, r"no column text in .*; it has: path, b"),
        ("t.csv", "path,b\n", {}, "has no rows"),
        ("t.jsonl", "", {}, "no column of image paths"),
        ("t.jsonl", '{"path": "a.jpg"}\n[1]\n', {}, "line 2: expected a JSON object, found list"),
        ("t.jsonl", "{nope\n", {}, r"t\.jsonl, line 1: "),
        ("t.csv", "path\na/x.jpg\na/x.png\n", {}, "Two samples have the key 'a/x'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, name: str, text: str, options: dict[str, str], said: str
) -> None:
    uri = _table(tmp_path / name, text)
    with pytest.raises(SourceError, match=said):
        encode_dataset(
            uri, tmp_path / "out", tiny_config(), RunOptions(device="cpu"), source_options=SourceOptions(**options)
        )
    assert not (tmp_path / "out").exists()


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"file of no known kind; expected a folder of images, a \.tar"):
        open_source(str(tmp_path / "x.zip"))
    with pytest.raises(SourceError, match="There is no folder"):
        open_source(str(tmp_path / "nowhere"))


def test_a_folder_of_images_with_tables_beside_them_is_a_folder(tmp_path: Path) -> None:
    shutil.copytree(_make_plain(tmp_path / "plain"), tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.parquet").write_bytes(b"x")
    (tmp_path / "mixed" / "old.tar").write_bytes(b"x")
    assert [entry.key for entry in open_source(str(tmp_path / "mixed")).entries()] == ["a"]


def _make_plain(root: Path) -> Path:
    root.mkdir()
    (root / "a.jpg").write_bytes(b"x")
    return root


def test_awkward_values_reach_the_table_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded_image(96, 128))
    uri = _table(
        tmp_path / "t.jsonl", '{"path": "a.jpg", "caption": "half \\ud83d", "score": NaN, "in": [Infinity]}\n'
    )
    encode_dataset(uri, tmp_path / "out", tiny_config(), RunOptions(device="cpu"))
    (row,) = read_rows(tmp_path / "out", "part-000000").to_pylist()
    assert row["caption"] == "half \\ud83d"
    assert json.loads(row["attributes"], parse_constant=pytest.fail) == {"score": None, "in": [None]}
    assert LatentDataset(tmp_path / "out")[0]["latents"].isfinite().all()
