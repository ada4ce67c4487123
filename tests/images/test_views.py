"""Several views of an image: which there are, what they are called, and that they are the pixels of single ones."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from dcae_cache.config import EncodeConfig
from dcae_cache.errors import SampleSkipped, UsageError
from dcae_cache.images import pixels as pixels_module
from dcae_cache.images.buckets import bucket_for
from dcae_cache.images.pixels import load_pixels, load_views
from dcae_cache.images.views import Fitting
from helpers.images import encoded_image
from helpers.pictures import encoded

SIDES = (64, 128, 256)


def fitting(**settings: object) -> Fitting:
    return EncodeConfig(resolutions=SIDES, **settings).fitting(32)  # type: ignore[arg-type]


def test_views_are_those_of_the_single_rules_and_steps() -> None:
    views = fitting().views_of("a", 300, 500)
    alone = [bucket_for(300, 500, EncodeConfig(resolution=side).bucket_rule(32)) for side in SIDES]
    assert [(view.bucket, view.crop) for view in views] == alone
    assert [view.resolution for view in views] == list(SIDES)
    assert EncodeConfig(resolutions=(256, 64, 256)).resolutions == (64, 256)
    assert EncodeConfig(resolutions=(64,)) == EncodeConfig(resolution=64)


def test_sizes_that_an_image_is_too_small_for_are_left_out() -> None:
    limited = fitting(bucket="square", max_upscale=1.0)
    assert [view.resolution for view in limited.views_of("a", 130, 200)] == [64, 128]
    with pytest.raises(SampleSkipped, match="fill 64x64"):
        limited.views_of("a", 63, 200)


@pytest.mark.parametrize("bucket", ["square", "area", "kohya", "native", "list", "sana-512"])
def test_random_crops_lie_inside_and_follow_from_key_and_seed(bucket: str) -> None:
    sizes = {"buckets": ("64x96", "96x64")} if bucket == "list" else {"bucket": bucket}
    rule = EncodeConfig(crops=5, resolution=256, **sizes).fitting(32)  # type: ignore[arg-type]
    for key, height, width in (("a", 301, 777), ("b", 777, 301), ("c", 64, 64), ("ü/ß", 1000, 999)):
        views = rule.views_of(key, height, width)
        assert [view.number for view in views] == [0, 1, 2, 3, 4]
        assert views == rule.views_of(key, height, width)
        for view in views:
            assert 0 <= view.crop.top <= view.crop.resized_height - view.bucket.height
            assert 0 <= view.crop.left <= view.crop.resized_width - view.bucket.width


def test_random_crops_reach_everywhere() -> None:
    rule = EncodeConfig(crops=400, resolution=64, bucket="square").fitting(32)
    lefts = {view.crop.left for view in rule.views_of("a", 64, 74)}
    assert lefts == set(range(11))
    other_seed = EncodeConfig(crops=400, crop_seed=1, resolution=64, bucket="square").fitting(32)
    assert [v.crop for v in other_seed.views_of("a", 64, 74)] != [v.crop for v in rule.views_of("a", 64, 74)]
    assert [v.crop for v in rule.views_of("b", 64, 74)] != [v.crop for v in rule.views_of("a", 64, 74)]


def test_the_place_of_a_crop_is_the_one_that_the_format_states() -> None:
    """docs/format.md: sha256("{seed} {crop} {key}"), its first 16 bytes as two numbers."""
    (view,) = (
        EncodeConfig(crop="random", crop_seed=7, resolution=64, bucket="square").fitting(32).views_of("k", 64, 99)
    )
    across = int.from_bytes(hashlib.sha256(b"7 0 k").digest()[8:16], "big")
    assert (view.crop.top, view.crop.left) == (0, across * 36 // 2**64)


def test_keys_of_rows_are_never_shared() -> None:
    several, both = fitting(), fitting(crops=2)
    one_size = EncodeConfig(crops=2, resolution=64).fitting(32)
    assert [several.key_of("a", view) for view in several.views_of("a", 300, 300)] == ["a@64", "a@128", "a@256"]
    assert [both.key_of("a", view) for view in both.views_of("a", 300, 300)][:2] == ["a@64c0", "a@64c1"]
    assert [one_size.key_of("a", view) for view in one_size.views_of("a", 300, 300)] == ["a@c0", "a@c1"]
    odd = ["a", "a@64", "a@", "a@64@", "a@@64"]
    keys = [several.key_of(key, view) for key in odd for view in several.views_of(key, 300, 300)]
    keys += [several.key_of_skipped(key) for key in odd]
    assert len(set(keys)) == len(keys)
    plain = EncodeConfig().fitting(32)
    assert plain.key_of("a@64", plain.views_of("a@64", 300, 300)[0]) == plain.key_of_skipped("a@64") == "a@64"


@pytest.mark.parametrize(
    "settings",
    [
        {"resolutions": (256, 512), "bucket": "native"},
        {"resolutions": (256, 512), "bucket": "sana-512"},
        {"resolutions": (256, 512), "buckets": ("64x64",)},
        {"crops": -1},
        {"crops": 2, "crop": "adm", "bucket": "square"},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"`resolution`|`crops`"):
        EncodeConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Resolution 100"):
        EncodeConfig(resolutions=(64, 100)).fitting(32)


def _count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many times smaller each image is that is decoded from now on."""
    decoded: list[float] = []
    plain = pixels_module._Flat.of

    def counted(image: Image.Image, orientation: int, shrunk: float = 1.0) -> object:
        decoded.append(shrunk)
        return plain(image, orientation, shrunk)

    monkeypatch.setattr(pixels_module._Flat, "of", staticmethod(counted))
    return decoded


@pytest.mark.parametrize("crop", ["center", "random", "adm"])
def test_views_have_the_pixels_of_single_loads_from_one_decode(crop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded_image(300, 200)
    both = fitting(bucket="square", crop=crop, crops=2 if crop == "random" else 0)
    views = both.views_of("a", 300, 200)
    decoded = _count_decodes(monkeypatch)
    places = [(view.bucket, view.crop) for view in views]
    loaded = load_views(data, lambda height, width: places, 10**9, adm=crop == "adm")
    assert decoded == [1.0]
    for view, found in zip(views, loaded, strict=True):
        (alone,) = load_views(data, lambda height, width, v=view: [(v.bucket, v.crop)], 10**9, adm=crop == "adm")  # type: ignore[misc]
        assert (found.bucket, found.crop, found.height, found.width) == (view.bucket, view.crop, 300, 200)
        assert np.array_equal(found.data, alone.data)


def test_a_smooth_jpeg_is_decoded_once_for_each_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(0, 255, 2304, dtype=np.uint8)
    data = encoded(np.stack([np.broadcast_to(ramp, (2048, 2304))] * 3, axis=2), "JPEG")
    rules = [EncodeConfig(resolution=side, bucket="square").bucket_rule(32) for side in (*SIDES, 1024)]
    alone = [load_pixels(data, rule, 10**9).data for rule in rules]
    decoded = _count_decodes(monkeypatch)
    fits = [bucket_for(2048, 2304, rule) for rule in rules]
    loaded = load_views(data, lambda height, width: fits + fits, 10**9)
    assert sorted(decoded) == [1.0, 4.0, 8.0]
    for found, pixels in zip(loaded, alone + alone, strict=True):
        assert np.array_equal(found.data, pixels)
