"""Small caches to export: squares with mirrored images and labels, and Sana's buckets with captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcae_cache.config import RunOptions
from dcae_cache.encode.pipeline import encode_dataset
from helpers.images import encode, encoded_image, make_folder, tiny_config


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples of 128x128 in fp32, of three classes, with mirrored ones. Read only."""
    root = tmp_path_factory.mktemp("squares")
    encode(make_folder(root / "photos", 20), root / "cache", bucket="square", flip=True)
    return root / "cache"


@pytest.fixture(scope="session")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven samples in Sana's buckets, stored as bf16, with captions: one has two, one none. Read only."""
    root = tmp_path_factory.mktemp("sana")
    sizes = ((64, 64), (90, 61), (61, 90), (40, 160), (160, 40), (70, 50), (33, 31))
    (root / "photos").mkdir()
    for number, (height, width) in enumerate(sizes):
        image = root / "photos" / f"a.b{number}.jpg"  # a dot in the key
        image.write_bytes(encoded_image(height, width, seed=number))
        notes: dict[str, object] = {"caption": f"picture {number} £"}
        if number == 1:
            notes = {"caption": ["first", "second"], "captions": ["first", "second"], "clip_scores": [0.25, 0.75]}
        if number != 4:
            image.with_suffix(".json").write_text(json.dumps(notes))
    options = RunOptions(device="cpu", workers=1, part_size=4, batch_size=1)
    config = tiny_config(bucket="sana-512", dtype="bf16", compute_dtype="fp32")
    encode_dataset(root / "photos", root / "cache", config, options)
    return root / "cache"
