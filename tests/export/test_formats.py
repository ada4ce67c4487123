"""What is exported, read back by readers that aren't ours: the trainers' libraries, or their loaders' rules written
anew here from their sources."""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import json
import sys
import tarfile
import types
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from dcae_cache import LatentDataset
from dcae_cache.export.exporter import ExportOptions
from dcae_cache.export.run import ExportSummary, export_cache
from dcae_cache.images.bucket_tables import TABLES


def by_key(cache: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Every sample of a cache, latents in fp32."""
    dataset = LatentDataset(cache, **options)
    samples = [dict(dataset[number]) for number in range(len(dataset))]
    return {sample["key"]: sample | {"latents": sample["latents"].float()} for sample in samples}


def export(cache: Path, to: str, out: Path, **options: Any) -> ExportSummary:
    return export_cache(cache, to, out, ExportOptions(**options))


# --- wids ----------------------------------------------------------------------------------------------------------


def trainers_bucket(height: int, width: int) -> tuple[int, int]:
    """Sana's get_closest_ratio over ASPECT_RATIO_512, whose keys are published as text."""
    table = {f"{round(b.height / b.width, 2)}": (b.height, b.width) for b in TABLES["sana-512"]}
    return table[min(table, key=lambda ratio: abs(float(ratio) - height / width))]


@pytest.mark.parametrize("options", [{}, {"shuffle": 3}])
def test_wids_as_sana_and_dc_gen_read_it(sana: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wids = pytest.importorskip("wids")
    summary = export(sana, "wids", tmp_path / "out", shard_size=4, **options)
    assert summary.num_shards == 2
    index, fetched = str(tmp_path / "out" / "wids-meta.json"), str(tmp_path / "fetched")
    decoder = partial(wids.wids.default_decoder, format="numpy")
    found = wids.ShardListDataset(index, cache_dir=fetched, transformations=decoder)
    expected = by_key(sana)
    assert len(found) == len(expected) == 7
    order = []
    for sample in (found[number] for number in range(len(found))):
        notes, latents = sample[".json"], sample[".npy"]
        order.append(notes["key"])
        assert latents.dtype == np.float32
        assert torch.equal(torch.from_numpy(latents.copy()), expected[notes["key"]]["latents"])  # scaled, as stored
        height, width = trainers_bucket(notes["height"], notes["width"])
        assert latents.shape == (32, height // 32, width // 32)  # what Sana asserts of every sample
        assert notes["prompt"] == expected[notes["key"]]["caption"]
        assert len(notes["captions"]) == len(notes["clip_scores"])
        assert sum(notes["clip_scores"]) > 0
        assert (notes["original_height"], notes["original_width"]) == (
            expected[notes["key"]]["height"],
            expected[notes["key"]]["width"],
        )
    assert sorted(order) == sorted(expected)
    assert (order == list(expected)) == (not options)
    two = next(s[".json"] for s in (found[n] for n in range(7)) if s[".json"]["key"] == "a.b1")
    assert (two["captions"], two["clip_scores"]) == (["first", "second"], [0.25, 0.75])


def test_wids_tars_keep_to_what_the_trainers_parser_knows(sana: Path, tmp_path: Path) -> None:
    summary = export(sana, "wids", tmp_path / "out")
    raw = (tmp_path / "out" / "00000.tar").read_bytes()
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        members = tar.getmembers()
        assert all(raw[member.offset + 156 : member.offset + 157] == b"0" for member in members)  # no pax, no GNU
    assert all(len(member.name) <= 100 and member.name.count(".") == 1 for member in members)
    assert [member.name for member in members[:2]] == ["000000000.npy", "000000000.json"]
    assert "ASPECT_RATIO_512" in summary.note
    assert any("1 of 7 samples have no caption" in caution for caution in summary.cautions)
    assert any("shuffle" in caution for caution in summary.cautions)


# --- npy -----------------------------------------------------------------------------------------------------------


def dataset_folder(root: Path) -> list[tuple[Path, int]]:
    """torchvision's DatasetFolder(root, np.load, [".npy"]).samples, as torchvision.datasets.folder makes it:
    find_classes and make_dataset. Written out, since torchvision can be imported only beside the torch build it was
    made for."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    samples = []
    for number, name in enumerate(classes):
        files = [path for path in sorted((root / name).rglob("*")) if path.name.lower().endswith(".npy")]
        assert files, f"torchvision raises FileNotFoundError for the class {name}"
        samples += [(path, number) for path in files]
    return samples


def test_npy_as_efficientvit_reads_it(squares: Path, tmp_path: Path) -> None:
    export(squares, "npy", tmp_path / "out", shard_size=7)
    expected = by_key(squares)
    samples = dataset_folder(tmp_path / "out")
    assert len(samples) == len(expected)
    for path, number in samples:
        key = path.relative_to(tmp_path / "out").with_suffix("").as_posix()  # the image's own relative path
        latents = np.load(path)
        assert (latents.dtype, latents.flags.c_contiguous) == (np.float32, True)
        assert torch.equal(torch.from_numpy(latents), expected[key]["latents"])
        assert f"class{number}" == expected[key]["label"]


# --- LightningDiT ----------------------------------------------------------------------------------------------------


def lightningdit_samples(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """As its ImgLatentDataset: sorted safetensors, a sample by file and row, normalised by latents_stats.pt; here with
    both the latent and the mirrored one, of which it draws one."""
    statistics = torch.load(folder / "latents_stats.pt")
    samples = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", device="cpu") as file:
            latents, mirrored, labels = (file.get_slice(name) for name in ("latents", "latents_flip", "labels"))
            for row in range(labels.get_shape()[0]):
                both = [(each[row : row + 1] - statistics["mean"]) / statistics["std"] for each in (latents, mirrored)]
                samples.append((both[0][0], both[1][0], int(labels[row : row + 1])))
    return samples


def test_lightningdit_as_its_loader_reads_it(squares: Path, tmp_path: Path) -> None:
    export(squares, "lightningdit", tmp_path / "out", shard_size=8)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    plain, mirrored = LatentDataset(squares, raw=True), LatentDataset(squares, raw=True, flipped=True)
    raw = torch.stack([plain[number]["latents"] for number in range(len(plain))])
    mean, std = raw.mean(dim=(0, 2, 3), keepdim=True), raw.std(dim=(0, 2, 3), keepdim=True)  # as the loader would
    statistics = torch.load(tmp_path / "out" / "latents_stats.pt")
    torch.testing.assert_close(statistics["mean"], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics["std"], std, rtol=1e-5, atol=1e-6)
    for number, (latents, flipped, label) in enumerate(lightningdit_samples(tmp_path / "out")):
        normalised = [(each[number]["latents"] - mean[0]) / std[0] for each in (plain, mirrored)]
        torch.testing.assert_close(latents, normalised[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(flipped, normalised[1], rtol=1e-4, atol=1e-4)
        assert f"class{label}" == plain[number]["label"]
    with safe_open(tmp_path / "out" / "latents_rank00_shard00000.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("latents"), raw[:8])  # the very quotients that the reader gives
        assert file.get_tensor("labels").dtype == torch.int64


def test_statistics_of_a_choice_are_those_of_the_choice(squares: Path, tmp_path: Path) -> None:
    export(squares, "lightningdit", tmp_path / "out", limit=9, shard_size=4)
    dataset = LatentDataset(squares, raw=True)
    raw = torch.stack([dataset[number]["latents"] for number in range(9)])
    statistics = torch.load(tmp_path / "out" / "latents_stats.pt")
    torch.testing.assert_close(statistics["mean"], raw.mean(dim=(0, 2, 3), keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics["std"], raw.std(dim=(0, 2, 3), keepdim=True), rtol=1e-5, atol=1e-6)


# --- EDM2 ----------------------------------------------------------------------------------------------------------


def edm2_samples(path: Path) -> list[tuple[np.ndarray[Any, Any], Any]]:
    """As its ImageFolderDataset: names sorted, every array of one shape and square, labels from dataset.json."""
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.testzip() is None
        labels = json.loads(archive.read("dataset.json"))["labels"]
        names = sorted(name for name in archive.namelist() if name.endswith(".npy"))
        table = dict(labels) if labels is not None else dict.fromkeys(names)
        arrays = []
        for name in names:
            with archive.open(name) as file:
                arrays.append(np.load(file))
    assert {array.shape for array in arrays} == {arrays[0].shape}
    assert arrays[0].shape[1] == arrays[0].shape[2]
    return [(array, table[name]) for array, name in zip(arrays, names, strict=True)]


@pytest.mark.parametrize("choice", [{}, {"limit": 11}])
def test_edm2_as_its_loader_reads_it(squares: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    export(squares, "edm2", tmp_path / "out", shard_size=8, **choice)
    samples = edm2_samples(tmp_path / "out" / "latents.zip")
    dataset = LatentDataset(squares, raw=True)
    assert len(samples) == choice.get("limit", 20)
    for number, (array, label) in enumerate(samples):
        mean, std = np.split(array, 2)
        assert torch.equal(torch.from_numpy(mean), dataset[number]["latents"])
        assert not std.any()
        assert f"class{label}" == dataset[number]["label"]
    raw = torch.stack([dataset[number]["latents"] for number in range(len(samples))]).double()
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_bytes())
    assert statistics["raw_mean"] == pytest.approx(raw.mean(dim=(0, 2, 3)).tolist(), rel=1e-5, abs=1e-7)
    assert statistics["raw_std"] == pytest.approx(raw.std(dim=(0, 2, 3)).tolist(), rel=1e-5)
    assert not (tmp_path / "out" / "pieces").exists()


# --- MDS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mosaicml-streaming. It imports torchvision for data sets of images, which nothing here touches; where
    torchvision doesn't fit the installed torch, empty classes stand in for it."""
    if importlib.util.find_spec("streaming") is None:
        pytest.skip("mosaicml-streaming isn't installed: extra mds")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        wanted = {"": (), ".datasets": ("VisionDataset", "CIFAR10"), ".transforms": ()}
        for name, classes in (wanted | {".transforms.functional": ("to_tensor",)}).items():
            module = types.ModuleType(f"torchvision{name}")
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            module.__dict__.update({each: type(each, (), {}) for each in classes})
            monkeypatch.setitem(sys.modules, module.__name__, module)
    return pytest.importorskip("streaming")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_mds_as_prx_reads_it(streaming: Any, sana: Path, tmp_path: Path, dtype: str) -> None:
    summary = export(sana, "mds", tmp_path / "out", shard_size=4, dtype=dtype)
    assert "has_text_latents false" in summary.note
    folders = sorted(path.parent for path in (tmp_path / "out").glob("*/index.json"))
    expected = by_key(sana, raw=True, columns=("key", "caption", "label", "height", "width"))
    sizes = {key: tuple(sample["latents"].shape[1:]) for key, sample in expected.items()}
    assert [path.name for path in folders] == sorted(f"{w / h:.3f}" for h, w in set(sizes.values()))
    streams = [streaming.Stream(local=str(folder)) for folder in folders]
    found = streaming.StreamingDataset(streams=streams, batch_size=2, batching_method="per_stream", shuffle=False)
    assert len(found) == len(expected)
    for sample in (found[number] for number in range(len(found))):
        mean, std = np.split(sample["img_latent"].copy(), 2)
        right = expected[sample["key"]]
        assert mean.dtype == (np.float32 if dtype == "fp32" else np.float16)
        assert torch.equal(torch.from_numpy(mean), right["latents"].to(torch.from_numpy(mean).dtype))
        assert not std.any()
        assert sample["caption"] == right["caption"]
        assert (sample["original_height"], sample["original_width"]) == (right["height"], right["width"])


# --- WebDataset ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.parametrize(("tensor", "dtype"), [("npy", "fp32"), ("npy", "fp16"), ("safetensors", "bf16")])
def test_webdataset_as_webdataset_reads_it(squares: Path, tmp_path: Path, tensor: str, dtype: str) -> None:
    import webdataset

    export(squares, "webdataset", tmp_path / "out", shard_size=15, tensor=tensor, dtype=dtype)
    pattern = f"{tmp_path}/out/{{00000..00001}}.tar"
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False).decode())
    gc.collect()
    expected, mirrored = by_key(squares), by_key(squares, flipped=True)
    stored = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert len(samples) == len(expected)
    for sample in samples:
        key = sample["json"]["key"]
        if tensor == "npy":
            found = {"latents": torch.from_numpy(sample["npy"]), "latents_flip": torch.from_numpy(sample["flip.npy"])}
        else:
            found = load(sample["safetensors"])
        assert torch.equal(found["latents"], expected[key]["latents"].to(stored))
        assert torch.equal(found["latents_flip"], mirrored[key]["latents"].to(stored))
        assert f"class{sample['cls']}" == expected[key]["label"] == sample["json"]["label"]
        assert sample["txt"] == expected[key]["caption"]
        assert sample["json"]["scaling_factor"] == LatentDataset(squares).scaling_factor
    assert json.loads((tmp_path / "out" / "classes.json").read_bytes()) == {f"class{n}": n for n in range(3)}
