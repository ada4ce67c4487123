"""Sizes, steps and kinds as they are given on a command line, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcae_cache.cli.encode import _sizes
from dcae_cache.config import EncodeConfig
from dcae_cache.errors import UsageError
from dcae_cache.images.buckets import BucketKind, BucketRule
from helpers.command import run
from helpers.images import make_folder

TINY = ("--model", "f32c32-tiny", "--device", "cpu", "--dry-run")


def test_own_sizes_and_one_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 6)
    encode = ("encode", folder, "--out", tmp_path / "out", *TINY, "--json")
    sizes = json.loads(run(*encode, "--buckets", "512x288, 288x512").stdout)
    assert set(sizes["buckets"]) == {"288x512", "512x288"}
    one = json.loads(run(*encode, "--resolution", "512x288", "--bucket", "square").stdout)
    assert one["buckets"] == {"512x288": 6}
    assert 0 < sizes["cropped_mean"] < 1


@pytest.mark.parametrize(
    ("resolution", "buckets", "bucket", "message"),
    [
        ("512,1024", None, "area", "--resolution is a number of pixels"),
        ("big", None, "area", "--resolution is a number of pixels"),
        ("0", None, "area", "--resolution is a number of pixels"),
        ("512x288", None, "kohya", "--buckets 512x288,288x512"),
        ("512x288", "512x512", "area", "--buckets 512x288,288x512"),
        ("512x280", None, "square", "512x288 is near it"),
        ("512", "512", "area", "HEIGHTxWIDTH"),
        ("512", "512x288", "native", "leave `bucket` 'native' out"),
        ("512", None, "list", "needs `buckets`"),
        ("512", None, "sana-256", "the autoencoder's factor 32 does not divide"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(
    resolution: str, buckets: str | None, bucket: BucketKind, message: str
) -> None:
    def rule() -> BucketRule:
        side, sizes = _sizes(resolution, buckets, bucket)
        kind: BucketKind = "list" if sizes and bucket == "square" else bucket
        return EncodeConfig(resolution=side, buckets=sizes, bucket=kind).bucket_rule(32)

    with pytest.raises(UsageError, match=message):
        rule()


def test_what_is_cropped_and_which_kinds_are_not_read_is_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 3)
    (folder / "x").write_bytes((folder / "class0" / "img000.jpg").read_bytes())
    (folder / "layers.png").write_bytes(b"8BPS\0\1")
    command = ("encode", folder, "--out", tmp_path / "out", *TINY[:-1], "--resolution", "128", "--any-suffix")
    text = run(*command, "--dry-run").stdout
    assert "4 of 5 images" in text
    assert "cropped away: " in text
    assert "  unsupported 1: Photoshop is not read here" in text
    said = run(*command).stderr
    assert "  unsupported 1: Photoshop is not read here; convert it first." in said
