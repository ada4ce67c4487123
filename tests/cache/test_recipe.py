"""The recipe of a cache: which settings give the same one, and what those of older caches mean."""

from __future__ import annotations

from typing import Any

import pytest

from dcae_cache.cache.recipe import ModelIdentity, config_of, fingerprint, recipe_changes, recipe_of
from dcae_cache.config import EncodeConfig
from dcae_cache.errors import UsageError
from dcae_cache.images.buckets import BucketRule, buckets_of


def recipe(factor: int = 32, **settings: Any) -> dict[str, Any]:
    model = ModelIdentity("m", None, None, "f" * 64, factor, 32, 0.4)
    return recipe_of(EncodeConfig(**settings), model)


def test_the_step_is_written_down_as_a_number() -> None:
    assert recipe()["bucket_step"] == 32
    assert recipe(resolution=1024)["bucket_step"] == 64
    assert recipe(factor=8, resolution=256)["bucket_step"] == 16
    assert recipe(bucket_step=96)["bucket_step"] == 96
    for kind in ("square", "kohya", "native", "sana-1024"):
        assert recipe(bucket=kind)["bucket_step"] == 64, "as it has always been"
    assert fingerprint(recipe()) == fingerprint(recipe(bucket_step=32))


def test_with_the_old_step_the_recipe_is_the_old_one_but_for_the_image_rules() -> None:
    new = recipe(bucket_step=64)
    old = {
        "format_version": 1,
        "image_rules_version": 1,
        "model": "m",
        "model_source": "f32c32-mix",
        "repo_id": None,
        "revision": None,
        "weights_sha256": "f" * 64,
        "spatial_compression_ratio": 32,
        "latent_channels": 32,
        "scaling_factor": 0.4,
        "dtype": "bf16",
        "compute_dtype": "bf16",
        "resolution": 512,
        "bucket": "area",
        "crop": "center",
        "resize": "lanczos",
        "max_aspect": 4.0,
        "max_upscale": None,
        "bucket_step": 64,
        "bucket_min": 256,
        "bucket_max": 1024,
        "flip": False,
        "max_pixels": 178_956_970,
    }
    assert list(new) == list(old)
    assert recipe_changes(old, new) == ["image_rules_version: 1 -> 2"]
    assert recipe_changes(old, recipe()) == ["image_rules_version: 1 -> 2", "bucket_step: 64 -> 32"]


@pytest.mark.parametrize("recorded", [32, 64, 128])
def test_an_old_cache_is_read_with_the_step_it_was_made_with_whatever_it_says(recorded: int) -> None:
    old = recipe(bucket_step=recorded) | {"image_rules_version": 1}  # the option had no say over area buckets
    made = BucketRule(kind="area", resolution=512, factor=32, step=64)
    assert buckets_of(config_of(old).bucket_rule(32)) == buckets_of(made)
    kohya = recipe(bucket="kohya", bucket_step=recorded) | {"image_rules_version": 1}
    assert config_of(kohya).bucket_step == recorded


@pytest.mark.parametrize(
    "settings",
    [{}, {"resolution": 256}, {"bucket_step": 64}, {"buckets": ("512x288", "288x512")}, {"bucket": "prx-512"}],
)
def test_a_stored_recipe_gives_the_rule_it_came_from(settings: dict[str, Any]) -> None:
    assert config_of(recipe(**settings)).bucket_rule(32) == EncodeConfig(**settings).bucket_rule(32)
    assert recipe_changes(recipe(**settings), recipe_of(config_of(recipe(**settings)), MODEL)) == []


MODEL = ModelIdentity("m", None, None, "f" * 64, 32, 32, 0.4)


def test_own_sizes_are_part_of_the_recipe_in_one_order() -> None:
    found = recipe(buckets=("512x288", "288x512", "512X288"))
    assert (found["bucket"], found["buckets"]) == ("list", ["288x512", "512x288"])
    assert found == recipe(bucket="list", buckets=("288x512", "512x288"))
    assert "buckets" not in recipe()
    with pytest.raises(UsageError, match="leave `bucket` 'kohya' out"):
        EncodeConfig(bucket="kohya", buckets=("512x288",))
    with pytest.raises(UsageError, match="512x280 don't; 512x288 is near it"):
        recipe(buckets=("512x280",))
