"""A run on a device that is short of memory or overflows: what is stored, what is skipped, what is said."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dcae_cache.config import RunOptions
from dcae_cache.encode import distributed
from dcae_cache.encode.distributed import ProcessRank, join
from dcae_cache.encode.pipeline import Summary, encode_dataset
from dcae_cache.errors import ModelError, UsageError
from dcae_cache.models.dcae import DCAE
from dcae_cache.reader.dataset import LatentDataset
from helpers.devices import short_of_memory
from helpers.faults import hashes
from helpers.images import tiny_config


def run(photos: Path, out: Path, said: list[str] | None = None, dtype: str = "fp32", **options: Any) -> Summary:
    settings = RunOptions(device="cpu", workers=1, part_size=8, batch_size=3, **options)
    notify = said.append if said is not None else lambda text: None
    return encode_dataset(photos, out, tiny_config(dtype=dtype), settings, notify=notify)


def bright_do_not_fit(patch: pytest.MonkeyPatch) -> None:
    """Images that begin with a bright pixel are too much for the device, one by one too."""
    short_of_memory(patch, lambda autoencoder, pixels: not (pixels[:, 0, 0, 0] > 0).any())


def test_images_that_do_not_fit_are_skipped_and_tried_again_when_asked_for(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with monkeypatch.context() as patch:
        bright_do_not_fit(patch)
        summary = run(photos, tmp_path / "out", said)
        again = run(photos, tmp_path / "out")
    skipped = summary.skipped["no_memory"]
    assert 0 < skipped < 20
    assert summary.num_samples == 20 - skipped
    assert (again.encoded, again.skipped) == (0, {"no_memory": skipped})
    told = [text.partition(":")[0] for text in said if "has no memory for one image of" in text]
    assert len(told) == len(set(told)) > 0, "once for each size"
    rows = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {"no_memory"}
    assert all("no memory" in row["detail"] for row in rows)

    mended = run(photos, tmp_path / "out", retry_skipped=True)
    assert (mended.encoded, mended.copied, mended.skipped) == (skipped, 20 - skipped, {})
    expected = {sample["key"]: sample["latents"] for sample in LatentDataset(cache)}
    for sample in LatentDataset(tmp_path / "out"):
        assert torch.allclose(sample["latents"], expected[sample["key"]], atol=1e-4)


def test_what_was_encoded_again_in_fp32_is_told_once_at_the_end_with_a_count_and_the_keys(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DCAE.encode

    def encode(self: DCAE, pixels: Tensor) -> Tensor:
        latents = real(self, pixels).clone()
        if self.dtype == torch.bfloat16:
            latents[0] = float("inf")
        return latents

    monkeypatch.setattr(DCAE, "encode", encode)
    said: list[str] = []
    summary = run(photos, tmp_path / "out", said, dtype="bf16")
    assert (summary.num_samples, summary.skipped) == (20, {})
    assert 5 < summary.redone_in_fp32 < 20
    assert dataclasses.asdict(summary)["redone_in_fp32"] == summary.redone_in_fp32
    assert len(said) == 1
    assert said[0].startswith(f"{summary.redone_in_fp32} images overflowed and were encoded again in fp32")
    assert said[0].count("/img") == summary.redone_in_fp32
    monkeypatch.setattr("dcae_cache.encode.progress.NAMED", 2)
    said.clear()
    run(photos, tmp_path / "other", said, dtype="bf16")
    assert said[0].count("/img") == 2
    assert said[0].endswith(f" and {summary.redone_in_fp32 - 2} more.")


def test_a_device_that_is_lost_ends_the_run_with_one_line_and_the_next_one_goes_on(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [5]

    def fits(autoencoder: DCAE, pixels: Tensor) -> bool:
        left[0] -= 1
        return left[0] >= 0

    with monkeypatch.context() as patch:
        short_of_memory(patch, fits, lambda: RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore"))
        with pytest.raises(ModelError, match="cpu failed while encoding: CUDA error: uncorrectable ECC") as raised:
            run(photos, tmp_path / "out")
    assert "\n" not in str(raised.value)
    run(photos, tmp_path / "out")
    run(photos, tmp_path / "fresh")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


def rank(**changes: Any) -> ProcessRank:
    values = {"rank": 1, "world_size": 2, "local_rank": 1, "local_world_size": 2, "host": "127.0.0.1", "port": 29500}
    return ProcessRank(**(values | changes))


def test_one_gpu_by_its_number_is_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device(name))
    with pytest.raises(UsageError, match=r"`device` is cuda:1: under a launcher .* CUDA_VISIBLE_DEVICES"):
        join(rank(), "cuda:1")


def test_processes_on_gpus_join_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """No collective is ever run; Accelerate refuses pairs of RTX 40 cards with old drivers unless NCCL is told so."""
    import accelerate

    asked: dict[str, Any] = {}
    environ: dict[str, str] = {}

    class State:
        device = torch.device("cuda:1")

        def __init__(self, **settings: Any) -> None:
            asked.update(settings, nccl={name: value for name, value in environ.items() if name.startswith("NCCL")})

    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(distributed.os, "environ", environ)
    monkeypatch.setattr(distributed, "TCPStore", lambda *rest, **named: torch.distributed.HashStore())
    monkeypatch.setattr(accelerate, "PartialState", State)
    environ["NCCL_IB_DISABLE"] = "0"
    assert join(rank(), "cuda")[1] == torch.device("cuda:1")
    assert (asked["backend"], asked["cpu"]) == ("gloo", False)
    assert asked["nccl"] == {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "0"}
    assert "NCCL_P2P_DISABLE" not in environ, "the caller's own NCCL is left alone"
    assert environ["NCCL_IB_DISABLE"] == "0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_cuda_is_the_same_bytes_again_for_any_number_of_processes(
    photos: Path, tmp_path: Path, processes: int
) -> None:
    for name, count in (("first", 1), ("second", processes)):
        options = RunOptions(device="cuda", workers=1, part_size=8, batch_size=3, num_processes=count)
        encode_dataset(photos, tmp_path / name, tiny_config(flip=True), options)
    assert hashes(tmp_path / "first") == hashes(tmp_path / "second")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_images_that_do_not_fit_are_skipped_on_cuda(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright_do_not_fit(monkeypatch)
    options = RunOptions(device="cuda", num_processes=1, workers=1, part_size=8, batch_size=3)
    summary = encode_dataset(photos, tmp_path / "out", tiny_config(), options)
    assert summary.skipped["no_memory"] == 20 - summary.num_samples > 0
