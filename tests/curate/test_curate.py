"""Caches made from caches hold the same latents, row by row; what can't be right is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dcae_cache import LatentDataset, Selection
from dcae_cache.cache.index import load_index
from dcae_cache.cache.integrity import check_integrity
from dcae_cache.curate import copying
from dcae_cache.curate.annotate import annotate_cache
from dcae_cache.curate.choices import filter_cache, merge_caches, split_cache
from dcae_cache.errors import CacheError, RecipeMismatchError, UsageError
from dcae_cache.importing.run import ImportRequest, import_cache
from dcae_cache.verify import VerifyOptions, verify_cache
from helpers.command import run
from helpers.faults import hashes
from helpers.images import encode, make_folder
from helpers.tars import make_tar, triples

Latents = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two caches of other keys, one with a damaged image, and one of another recipe. Read only."""
    root = tmp_path_factory.mktemp("made")
    make_folder(root / "a", 13)
    (root / "a" / "class0" / "broken.jpg").write_bytes(b"no image")
    make_folder(root / "b", 6, first=20)
    for name in "ab":
        encode(root / name, root / f"cache-{name}", part_size=5, flip=True)
    encode(root / "b", root / "cache-other", part_size=5, flip=False)
    return {name: root / f"cache-{name}" for name in ("a", "b", "other")} | {"photos": root / "a"}


def latents_of(cache: Path) -> Latents:
    assert check_integrity(cache) == []
    plain, mirrored = LatentDataset(cache, columns=("key",)), LatentDataset(cache, columns=("key",), flipped=True)
    return {plain[i]["key"]: (plain[i]["latents"], mirrored[i]["latents"]) for i in range(len(plain))}


def assert_same(found: Latents, expected: Latents) -> None:
    assert found.keys() == expected.keys()
    for key, pair in expected.items():
        assert all(torch.equal(x, y) for x, y in zip(found[key], pair, strict=True)), key


def copy_of(cache: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cache, tmp_path / "copy", ignore=shutil.ignore_patterns(".derived"))


def test_merged(made: dict[str, Path], tmp_path: Path) -> None:
    summary = merge_caches([made["a"], made["b"]], tmp_path / "c")
    assert (summary.num_samples, summary.parts_reused) == (19, 0)
    assert_same(latents_of(tmp_path / "c"), latents_of(made["a"]) | latents_of(made["b"]))
    index = load_index(tmp_path / "c")
    assert index["complete"] is True
    assert index["skipped"] == {"not_an_image": 1}
    before = hashes(tmp_path / "c")
    again = merge_caches([made["a"], made["b"]], tmp_path / "c")
    assert again.parts_reused == again.num_parts
    assert hashes(tmp_path / "c") == before


def test_merge_refuses(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both have a sample 'class0/"):
        merge_caches([made["b"], made["b"]], tmp_path / "c")
    with pytest.raises(RecipeMismatchError, match="flip: True -> False"):
        merge_caches([made["a"], made["other"]], tmp_path / "c")
    with pytest.raises(UsageError, match="at least two"):
        merge_caches([made["a"]], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="`out`"):
            merge_caches([made["a"], made["b"]], out)
    with pytest.raises(UsageError, match="another cache already"):
        merge_caches([made["a"], made["b"]], made["a"])


@pytest.mark.parametrize("where", ["true == true", "label == 'class1'"])
def test_a_damaged_shard_is_named(made: dict[str, Path], tmp_path: Path, where: str) -> None:
    cache = copy_of(made["a"], tmp_path)
    shard = cache / "parts" / "part-000001.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(CacheError, match=r"part-000001\.safetensors has sha256"):
        filter_cache(cache, tmp_path / "c", where)
    assert not (tmp_path / "c" / "index.json").exists()


def test_filtered_and_gone_on_with(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = "width > 250 and endswith(key, '1') == false"
    table = LatentDataset(made["a"], columns=()).table(["key", "width"]).to_pylist()
    chosen = {row["key"] for row in table if row["width"] > 250 and not row["key"].endswith("1")}
    assert 0 < len(chosen) < 13
    filter_cache(made["a"], tmp_path / "whole", where)
    everything = latents_of(made["a"])
    assert_same(latents_of(tmp_path / "whole"), {key: everything[key] for key in chosen})

    copied = copying._copy

    def dying(taken: Any, part: Any, out: Path) -> None:
        if part.number == 1:
            raise KeyboardInterrupt
        copied(taken, part, out)

    monkeypatch.setattr(copying, "_copy", dying)
    with pytest.raises(KeyboardInterrupt):
        filter_cache(made["a"], tmp_path / "stopped", where)
    monkeypatch.undo()
    assert filter_cache(made["a"], tmp_path / "stopped", where).parts_reused == 1
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "whole")
    with pytest.raises(UsageError, match="another cache already"):
        filter_cache(made["a"], tmp_path / "whole", "width > 250")
    with pytest.raises(UsageError, match="holds for no sample"):
        filter_cache(made["a"], tmp_path / "none", "width > 9999")


def test_encode_into_a_chosen_cache_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    filter_cache(made["a"], tmp_path / "c", "width > 250")
    before = hashes(tmp_path / "c")
    with pytest.raises(RecipeMismatchError, match=r"made from other images: chosen: .*width > 250"):
        encode(made["photos"], tmp_path / "c", part_size=5, flip=True)
    assert hashes(tmp_path / "c") == before


def test_split_is_that_of_a_sampler_and_stays(made: dict[str, Path], tmp_path: Path) -> None:
    shares = [0.5, 0.2, 0.3]
    split_cache(made["a"], shares, tmp_path / "before")
    parts = [latents_of(tmp_path / "before" / str(number)) for number in range(3)]
    assert sum(map(len, parts)) == 13
    assert_same(parts[0] | parts[1] | parts[2], latents_of(made["a"]))
    dataset = LatentDataset(made["a"], columns=("key",))
    middle = Selection(dataset).split(0.5, 0.7)
    assert {dataset[int(number)]["key"] for number in middle.numbers} == set(parts[1])
    merge_caches([made["b"], made["a"]], tmp_path / "grown")
    split_cache(tmp_path / "grown", shares, tmp_path / "after")
    for number, part in enumerate(parts):
        assert set(part) <= set(latents_of(tmp_path / "after" / str(number)))
    for wrong in ([1.0], [0.5, 0.4], [1.5, -0.5]):
        with pytest.raises(UsageError, match="add up to 1"):
            split_cache(made["a"], wrong, tmp_path / "wrong")
    with pytest.raises(UsageError, match="would hold no sample"):
        split_cache(made["a"], [1 - 1e-6, 1e-6], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_split_by_another_column_keeps_its_values_together(made: dict[str, Path], tmp_path: Path) -> None:
    cache = copy_of(made["a"], tmp_path)
    keys = sorted(latents_of(cache))
    lines = [json.dumps({"key": key, "scene": f"s{number // 2}"}) for number, key in enumerate(keys[:-2])]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    annotate_cache(cache, tmp_path / "t.jsonl", "scene")
    split_cache(cache, [0.5, 0.5], tmp_path / "s", by="attributes.scene")
    dataset = LatentDataset(cache, columns=())
    chosen = Selection(dataset).split(0.0, 0.5, by="attributes.scene")
    first = set(dataset.table(["key"])["key"].take(pa.array(chosen.numbers)).to_pylist())
    assert set(latents_of(tmp_path / "s" / "0")) == first
    assert set(latents_of(tmp_path / "s" / "1")) == set(keys) - first
    pairs = [keys[number : number + 2] for number in range(0, len(keys) - 3, 2)]
    assert all(len({key in first for key in pair}) == 1 for pair in pairs)
    by_key = Selection(dataset).split(0.0, 0.5)
    alone = set(dataset.table(["key"])["key"].take(pa.array(by_key.numbers)).to_pylist())
    assert first & set(keys[-2:]) == alone & set(keys[-2:]), "without a value by the key"
    with pytest.raises(UsageError, match="No column 'scene'"):
        split_cache(cache, [0.5, 0.5], tmp_path / "n", by="scene")
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": keys[0], "tags": ["x", "y"]}))
    annotate_cache(cache, tmp_path / "t.jsonl", "tags")
    with pytest.raises(UsageError, match=r"`by` is attributes\.tags, which holds list"):
        split_cache(cache, [0.5, 0.5], tmp_path / "n", by="attributes.tags")
    nobody = Selection(dataset).split(0.0, 0.5, by="attributes.nobody")
    assert nobody.numbers.tolist() == by_key.numbers.tolist()


def test_annotated(made: dict[str, Path], tmp_path: Path) -> None:
    cache = copy_of(made["b"], tmp_path)
    shards = {name: value for name, value in hashes(cache).items() if name.endswith(".safetensors")}
    keys = sorted(latents_of(cache))
    lines = [f"{keys[0]},a red fox,007,0.5", f"{keys[1]},,1,0.25", "gone,x,2,1"]
    (tmp_path / "t.csv").write_text("\n".join(["id,text,label,score", *lines]) + "\n")
    summary = annotate_cache(cache, tmp_path / "t.csv", "text", key="id", name="caption")
    assert (summary.changed, summary.unmatched, summary.first_unmatched, summary.untold) == (1, 1, "gone", 5)
    annotate_cache(cache, tmp_path / "t.csv", "label", key="id")
    annotate_cache(cache, tmp_path / "t.csv", "score", key="id")
    again = annotate_cache(cache, tmp_path / "t.csv", "score", key="id")
    assert (again.changed, again.unchanged) == (0, 2)
    columns = ["key", "caption", "label", "attributes.score"]
    rows = {row["key"]: row for row in LatentDataset(cache, columns=()).table(columns).to_pylist()}
    assert rows[keys[0]] == dict(zip(columns, [keys[0], "a red fox", "007", 0.5], strict=True))
    assert rows[keys[1]]["attributes.score"] == 0.25
    assert rows[keys[2]]["attributes.score"] is None
    assert_same(latents_of(cache), latents_of(made["b"]))
    assert {name: value for name, value in hashes(cache).items() if name in shards} == shards


def test_annotated_with_several_captions(made: dict[str, Path], tmp_path: Path) -> None:
    cache = copy_of(made["b"], tmp_path)
    first, second, *_ = sorted(latents_of(cache))
    table = pa.table({"key": [first, second], "llava": [["a fox", "a red fox"], []], "unread": [b"1", b"2"]})
    pq.write_table(table, tmp_path / "t.parquet")

    def captions() -> dict[str, tuple[str | None, list[str] | None]]:
        columns = ["key", "caption", "attributes.captions"]
        rows = LatentDataset(cache, columns=()).table(columns).to_pylist()
        return {row["key"]: (row["caption"], row["attributes.captions"]) for row in rows}

    before = captions()
    summary = annotate_cache(cache, tmp_path / "t.parquet", "llava", name="caption")
    assert (summary.changed, summary.untold) == (1, len(before) - 1)
    assert captions() == before | {first: ("a fox", ["a fox", "a red fox"])}
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": first, "caption": "another"}))
    annotate_cache(cache, tmp_path / "t.jsonl", "caption")
    assert captions()[first] == ("another", None), "the old list doesn't go with the new caption"
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": first, "caption": ["a", 1]}))
    with pytest.raises(UsageError, match="expected a text or a list of texts"):
        annotate_cache(cache, tmp_path / "t.jsonl", "caption")
    with pytest.raises(UsageError, match="expected a text"):
        annotate_cache(cache, tmp_path / "t.jsonl", "caption", name="label")


def test_annotate_refuses(made: dict[str, Path], tmp_path: Path) -> None:
    cache = copy_of(made["b"], tmp_path)
    before = hashes(cache)
    (tmp_path / "t.jsonl").write_text('{"key": "x", "score": 1}\n{"key": "x", "score": 2}\n')
    for column, options, said in (
        ("score", {}, "key 'x' more than once"),
        ("caption", {}, "no column 'caption'"),
        ("score", {"name": "source_hash"}, "encode writes"),
    ):
        with pytest.raises(UsageError, match=said):
            annotate_cache(cache, tmp_path / "t.jsonl", column, **options)
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="can't be read as a table"):
        annotate_cache(cache, tmp_path / "t.parquet", "score")
    assert hashes(cache) == before


def test_imported_latents(tmp_path: Path) -> None:
    (tmp_path / "npy" / "cat").mkdir(parents=True)
    for number, values in enumerate(np.random.default_rng(0).standard_normal((6, 32, 4, 4)).astype(np.float32)):
        np.save(tmp_path / "npy" / "cat" / f"{number}.npy", values)
    request = ImportRequest(kind="npy", model="f32c32-tiny", scaled=True, part_size=4)
    import_cache(tmp_path / "npy", tmp_path / "cache", request)
    split_cache(tmp_path / "cache", [0.5, 0.5], tmp_path / "shares")
    merge_caches([tmp_path / "shares" / "0", tmp_path / "shares" / "1"], tmp_path / "again")
    before, after = (LatentDataset(tmp_path / name, columns=("key",)) for name in ("cache", "again"))
    found = {after[i]["key"]: after[i]["latents"] for i in range(len(after))}
    assert len(found) == 6
    assert all(torch.equal(found[before[i]["key"]], before[i]["latents"]) for i in range(6))


def test_tars_of_one_name(tmp_path: Path) -> None:
    """Their entries have the same key; their samples don't. What was left out on purpose is no finding."""
    for name, first in (("x", 0), ("y", 20)):
        make_tar(tmp_path / name / "0.tar", triples(first, 3))
        encode(tmp_path / name / "0.tar", tmp_path / f"cache-{name}")
    caches = [tmp_path / "cache-x", tmp_path / "cache-y"]
    merge_caches(caches, tmp_path / "c")
    assert merge_caches(caches, tmp_path / "c").parts_reused == 2
    assert check_integrity(tmp_path / "c") == []
    filter_cache(tmp_path / "cache-x", tmp_path / "one", "endswith(key, '1')")
    report = verify_cache(tmp_path / "one", VerifyOptions(source=str(tmp_path / "x" / "0.tar"), device="cpu"))
    assert (report.num_samples, report.findings) == (1, [])
    said = run("verify", tmp_path / "c", expect=1).stderr
    assert "Name the images yourself with --source" in said


def test_commands(made: dict[str, Path], tmp_path: Path) -> None:
    merged = run("merge", made["a"], made["b"], "--out", tmp_path / "c", "--json")
    assert json.loads(merged.stdout)["num_samples"] == 19
    assert "holds" in run("filter", tmp_path / "c", "--where", "width > 250", "--out", tmp_path / "f").stdout
    shares = json.loads(run("split", tmp_path / "c", "--parts", "0.5,0.5", "--out", tmp_path / "s", "--json").stdout)
    assert sum(share["num_samples"] for share in shares["shares"]) == 19
    key = next(iter(latents_of(tmp_path / "c")))
    (tmp_path / "t.jsonl").write_text(json.dumps({"key": key, "caption": "new"}) + '\n{"key": "x", "caption": "y"}\n')
    done = run("annotate", tmp_path / "c", tmp_path / "t.jsonl", "--column", "caption")
    assert "1 sample changed" in done.stdout
    assert "not in the cache, like x" in done.stderr
    assert "0.98,0.02" in run("split", tmp_path / "c", "--parts", "half", "--out", tmp_path / "n", expect=2).stderr
