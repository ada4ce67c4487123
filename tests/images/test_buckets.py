"""Bucket rules: properties that hold for every image, and what the published tables and rules give."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcae_cache.errors import SampleSkipped, UsageError
from dcae_cache.images.buckets import BucketKind, BucketRule, _nearest_log_aspect, bucket_for, buckets_of, parse_bucket
from dcae_cache.images.crops import crop_share, enlargement
from dcae_cache.records import Bucket, Crop

sides = st.integers(1, 20_000)
factors = st.sampled_from([8, 16, 32, 64, 128])
LARGEST_FACTOR = {
    "sana-256": 16,
    "sana-512": 64,
    "sana-1024": 64,
    "sana-2048": 128,
    "sana-2880": 64,
    "sana-4096": 128,
    "prx-512": 32,
    "prx-1024": 32,
}


@st.composite
def rules(draw: st.DrawFn) -> BucketRule:
    kind = draw(st.sampled_from(get_args(BucketKind)))
    factor = draw(factors.filter(lambda f: f <= LARGEST_FACTOR.get(kind, 128)))
    crop = draw(st.sampled_from(["center", "adm"])) if kind == "square" else "center"
    own = st.builds(lambda a, b: Bucket(a * factor, b * factor), st.integers(1, 20), st.integers(1, 20))
    step = draw(st.sampled_from([0, 64, 96])) if kind == "area" else max(64, factor)
    return BucketRule(
        kind=kind,
        resolution=draw(st.sampled_from([256, 384, 512, 1024])),
        factor=factor,
        crop=crop,
        max_aspect=draw(st.sampled_from([1.0, 2.0, 4.0])),
        step=step,
        buckets=tuple(draw(st.lists(own, min_size=1, max_size=9))) if kind == "list" else (),
    )


@given(sides, sides, rules())
def test_every_crop_lies_in_an_image_that_covers_its_bucket(height: int, width: int, rule: BucketRule) -> None:
    if rule.kind == "native" and min(height, width) < rule.factor:
        with pytest.raises(SampleSkipped, match="too_small"):
            bucket_for(height, width, rule)
        return
    bucket, crop = bucket_for(height, width, rule)
    assert bucket.height % rule.factor == 0 < bucket.height
    assert bucket.width % rule.factor == 0 < bucket.width
    assert 0 <= crop.top <= crop.resized_height - bucket.height
    assert 0 <= crop.left <= crop.resized_width - bucket.width
    # Centred to the pixel, and resized no further than needed.
    assert crop.top == (crop.resized_height - bucket.height) // 2
    assert crop.left == (crop.resized_width - bucket.width) // 2
    if rule.kind == "native":
        assert (crop.resized_height, crop.resized_width) == (height, width)
    else:
        assert bucket in buckets_of(rule)
        assert crop.resized_height == bucket.height or crop.resized_width == bucket.width


@given(sides, sides, rules().filter(lambda rule: rule.kind != "native" and rule.crop == "center"))
def test_a_resize_keeps_the_aspect_ratio_to_half_a_pixel(height: int, width: int, rule: BucketRule) -> None:
    _, crop = bucket_for(height, width, rule)
    scales = Fraction(crop.resized_height, height), Fraction(crop.resized_width, width)
    off = [abs(crop.resized_height - scales[1] * height), abs(crop.resized_width - scales[0] * width)]
    assert min(off) <= Fraction(1, 2)


@given(sides, sides, rules().filter(lambda rule: rule.kind in ("area", "square", "native")))
def test_transposing_the_image_transposes_the_answer(height: int, width: int, rule: BucketRule) -> None:
    try:
        bucket, crop = bucket_for(height, width, rule)
    except SampleSkipped:
        with pytest.raises(SampleSkipped):
            bucket_for(width, height, rule)
        return
    turned = Bucket(bucket.width, bucket.height), Crop(crop.resized_width, crop.resized_height, crop.left, crop.top)
    assert bucket_for(width, height, rule) == turned


@given(st.lists(st.tuples(sides, sides), min_size=2, max_size=20), st.randoms(), rules())
def test_the_answer_depends_on_nothing_that_came_before(
    sizes: list[tuple[int, int]], random: object, rule: BucketRule
) -> None:
    def answers(order: list[tuple[int, int]]) -> dict[tuple[int, int], object]:
        out: dict[tuple[int, int], object] = {}
        for size in order:
            try:
                out[size] = bucket_for(*size, rule)
            except SampleSkipped as skipped:
                out[size] = skipped.reason
        return out

    shuffled = sizes.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert answers(sizes) == answers(shuffled)


@given(st.integers(1, 64), factors, st.sampled_from([1.0, 1.5, 2.0, 4.0, 6.5]))
def test_area_buckets_stay_near_the_area_and_within_the_aspect(steps: int, factor: int, max_aspect: float) -> None:
    resolution = steps * factor
    step = max(factor, min(64, resolution // 16) // factor * factor)
    buckets = buckets_of(BucketRule(kind="area", resolution=resolution, factor=factor, max_aspect=max_aspect))
    assert Bucket(resolution, resolution) in buckets
    assert {(b.height, b.width) for b in buckets} == {(b.width, b.height) for b in buckets}
    for b in buckets:
        assert Fraction(abs(b.height * b.width - resolution**2), resolution**2) <= Fraction(step, 2 * resolution)
        assert max(b.height, b.width) <= max_aspect * min(b.height, b.width)
        assert b.height == b.width == resolution or b.height % step == b.width % step == 0


@given(sides, sides, st.sampled_from([256, 512, 1024]))
def test_area_is_nearest_in_log_aspect(height: int, width: int, resolution: int) -> None:
    rule = BucketRule(kind="area", resolution=resolution)

    def apart(b: Bucket) -> float:
        return abs(math.log(height * b.width) - math.log(width * b.height))

    assert apart(bucket_for(height, width, rule)[0]) <= min(map(apart, buckets_of(rule))) + 1e-12


@given(sides, st.sampled_from([(500, False), (300, True)]))
def test_a_tie_goes_to_the_larger_overlap(height: int, case: tuple[int, bool]) -> None:
    # A 1:2 image is as far from 1:1 as from 1:4. Which of them overlaps it more depends on their sizes.
    side, wide_wins = case
    square, wide, tall = Bucket(side, side), Bucket(200, 800), Bucket(800, 200)
    overlaps = [min(height, b.height) * min(2 * height, b.width) for b in (square, wide)]
    expected = wide if overlaps[1] > overlaps[0] else square
    assert height < 300 or (expected == wide) == wide_wins
    for order in itertools.permutations((square, wide, tall)):
        assert _nearest_log_aspect(height, 2 * height, order) == expected
        mirrored = _nearest_log_aspect(2 * height, height, order)
        assert (mirrored.width, mirrored.height) == (expected.height, expected.width)


TABLE_SIZES: dict[BucketKind, int] = {
    "sana-256": 40,
    "sana-512": 11,
    "sana-1024": 40,
    "sana-2048": 40,
    "sana-2880": 40,
    "sana-4096": 40,
    "prx-512": 13,
    "prx-1024": 27,
}


def test_the_published_tables_map_to_themselves() -> None:
    for kind, count in TABLE_SIZES.items():
        rule = BucketRule(kind=kind, factor=16)
        buckets = buckets_of(rule)
        assert len(buckets) == count
        for bucket in buckets if kind != "sana-2880" else ():  # some of its published keys are off
            whole = Crop(bucket.height, bucket.width, 0, 0)
            assert bucket_for(bucket.height, bucket.width, rule) == (bucket, whole)
    assert set(buckets_of(BucketRule(kind="sana-2048"))) == {
        Bucket(2 * b.height, 2 * b.width) for b in buckets_of(BucketRule(kind="sana-1024"))
    }


@given(sides, sides, st.sampled_from(["sana-512", "sana-1024", "sana-2048"]))
def test_sana_is_nearest_by_the_published_two_decimal_keys(height: int, width: int, kind: str) -> None:
    rule = BucketRule(kind=kind)
    keys = {b: round(b.height / b.width, 2) for b in buckets_of(rule)}
    assert {3.62, 3.88} <= set(keys.values()) or kind == "sana-512"
    bucket, _ = bucket_for(height, width, rule)
    ratio = height / width
    assert abs(keys[bucket] - ratio) <= min(abs(key - ratio) for key in keys.values()) + 1e-9 * ratio


@pytest.mark.parametrize(
    ("resolution", "max_side", "step", "count"), [(512, 1024, 64, 17), (1024, 1024, 64, 25), (1024, 2048, 64, 41)]
)
def test_kohya_makes_the_computed_number_of_sizes(resolution: int, max_side: int, step: int, count: int) -> None:
    rule = BucketRule(kind="kohya", resolution=resolution, max_side=max_side, step=step)
    assert len(buckets_of(rule)) == count
    for bucket in buckets_of(rule):
        assert bucket_for(bucket.height, bucket.width, rule)[0] == bucket


@given(sides, sides)
def test_kohya_is_nearest_in_aspect(height: int, width: int) -> None:
    rule = BucketRule(kind="kohya", resolution=512)
    bucket, _ = bucket_for(height, width, rule)
    errors = [abs(b.width / b.height - width / height) for b in buckets_of(rule)]
    assert abs(bucket.width / bucket.height - width / height) <= min(errors) + 1e-9 * width / height


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([32, 256, 512]))
def test_adm_geometry_is_the_published_one(height: int, width: int, size: int) -> None:
    h, w = height, width
    while min(w, h) >= 2 * size:
        w, h = w // 2, h // 2
    scale = size / min(w, h)
    w, h = round(w * scale), round(h * scale)
    _, crop = bucket_for(height, width, BucketRule(kind="square", resolution=size, crop="adm"))
    assert crop == Crop(h, w, (h - size) // 2, (w - size) // 2)


def test_no_enlarging_beyond_the_limit() -> None:
    rule = BucketRule(kind="square", resolution=512, max_upscale=2.0)
    assert bucket_for(256, 300, rule)[0] == Bucket(512, 512)
    with pytest.raises(SampleSkipped, match="2\\.01 times") as skipped:
        bucket_for(255, 300, rule)
    assert skipped.value.reason == "upscale_limit"
    assert bucket_for(1, 1, BucketRule(kind="area"))[1] == Crop(512, 512, 0, 0)


def test_the_other_odd_sizes() -> None:
    for size in ((0, 5), (31, 500)):
        with pytest.raises(SampleSkipped) as skipped:
            bucket_for(*size, BucketRule(kind="native"))
        assert skipped.value.reason == "too_small"
    assert bucket_for(10, 20_000, BucketRule(kind="area")) == (Bucket(256, 1024), Crop(256, 512_000, 0, 255_488))
    assert bucket_for(33, 100, BucketRule(kind="native")) == (Bucket(32, 96), Crop(33, 100, 0, 2))
    assert buckets_of(BucketRule(kind="native")) == ()
    assert [str(b) for b in buckets_of(BucketRule(kind="square", resolution=256))] == ["256x256"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "area", "resolution": 500}, "use 480 or 512"),
        ({"kind": "square", "resolution": 20}, "use 32\\."),
        ({"kind": "area", "resolution": -64}, "does not divide|use 32"),
        ({"kind": "area", "crop": "adm"}, "bucket 'square'"),
        ({"kind": "sana-1024", "factor": 128}, "576, 704, 832, \\.\\.\\..*Use bucket 'area'"),
        ({"kind": "kohya", "step": 48}, "step must be a multiple of the factor 32; 48"),
        ({"kind": "kohya", "min_side": 250}, "min_side"),
        ({"kind": "kohya", "min_side": 1024, "max_side": 512}, "min_side <= max_side"),
        ({"kind": "area", "max_aspect": 0.5}, "at least 1"),
        ({"kind": "area", "max_upscale": 0.5}, "at least 1"),
        ({"kind": "area", "factor": 0}, "at least 1"),
        ({"kind": "area", "step": -1}, "`bucket_step` is at least 1"),
        ({"kind": "list"}, "needs `buckets`"),
        ({"kind": "list", "buckets": (Bucket(512, 280),)}, "512x280 don't; 512x288 is near it"),
        ({"kind": "sqare"}, "no bucket rule 'sqare'.*square"),
        ({"kind": "square", "crop": "random"}, "no crop 'random'"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BucketRule(**settings)  # type: ignore[arg-type]


def test_all_sana_2048_sides_divide_by_128() -> None:
    assert len(buckets_of(BucketRule(kind="sana-2048", factor=128))) == 40


@pytest.mark.parametrize(
    ("factor", "resolution", "step"),
    [
        *[(32, 256, 32), (32, 512, 32), (32, 768, 32), (32, 1024, 64), (32, 2048, 64), (32, 4096, 64)],
        *[(8, 256, 16), (8, 512, 32), (8, 1024, 64), (64, 256, 64), (64, 1024, 64), (128, 512, 128)],
    ],
)
def test_the_step_of_area_buckets_follows_factor_and_resolution(factor: int, resolution: int, step: int) -> None:
    rule = BucketRule(kind="area", factor=factor, resolution=resolution)
    assert rule.step == step
    assert buckets_of(rule) == buckets_of(BucketRule(kind="area", factor=factor, resolution=resolution, step=step))


def test_area_buckets_in_steps_of_64_are_those_of_image_rules_1() -> None:
    wide = [(256, 960), (256, 1024), (320, 768), (320, 832), (384, 640), (384, 704), (448, 576)]
    found = {(b.height, b.width) for b in buckets_of(BucketRule(kind="area", step=64))}
    assert found == {*wide, (512, 512), *[(b, a) for a, b in wide]}
    # A step that the factor does not divide is rounded up, as that of 64 was for these.
    for factor in (48, 96, 128):
        rule = BucketRule(kind="area", factor=factor, resolution=8 * factor, step=64)
        upwards = -(-64 // factor) * factor
        assert buckets_of(rule) == buckets_of(
            BucketRule(kind="area", factor=factor, resolution=8 * factor, step=upwards)
        )


def test_own_sizes_are_chosen_by_aspect_then_overlap() -> None:
    sizes = tuple(parse_bucket(text) for text in ("512x288", "288x512", " 512X512", "256x256"))
    rule = BucketRule(kind="list", buckets=sizes)
    assert buckets_of(rule) == tuple(sorted(sizes))
    assert bucket_for(1920, 1080, rule) == (Bucket(512, 288), Crop(512, 288, 0, 0))
    assert bucket_for(1080, 1920, rule)[0] == Bucket(288, 512)
    assert bucket_for(800, 800, rule)[0] == Bucket(512, 512)
    assert bucket_for(200, 200, rule)[0] == Bucket(256, 256)


@pytest.mark.parametrize("text", ["512", "512x", "x288", "512x288x3", "0x32", "-32x32", "32.5x32", "٣٢x32", ""])
def test_a_bucket_is_written_height_x_width(text: str) -> None:
    with pytest.raises(UsageError, match="such as 512x288"):
        parse_bucket(text)


@pytest.mark.parametrize(
    ("kind", "factor"), [("sana-256", 32), ("sana-2880", 128), ("sana-4096", 512), ("prx-512", 64), ("prx-1024", 64)]
)
def test_tables_are_refused_where_the_factor_does_not_divide(kind: BucketKind, factor: int) -> None:
    with pytest.raises(UsageError, match=f"{kind} table has sides that the autoencoder's factor {factor} does not"):
        BucketRule(kind=kind, factor=factor)
    assert len(buckets_of(BucketRule(kind=kind, factor=factor // 2))) == TABLE_SIZES[kind]


def test_the_larger_tables_are_those_published() -> None:
    tables = {kind: buckets_of(BucketRule(kind=kind, factor=16)) for kind in TABLE_SIZES}
    times_16 = {Bucket(16 * b.height, 16 * b.width) for b in tables["sana-256"]}
    assert times_16 == set(tables["sana-4096"]) == {Bucket(4 * b.height, 4 * b.width) for b in tables["sana-1024"]}
    assert {Bucket(1408, 5760), Bucket(2304, 3392), Bucket(3904, 1920)} <= set(tables["sana-2880"])
    assert {Bucket(2048, 8192), Bucket(3840, 4352), Bucket(6912, 2304)} <= set(tables["sana-4096"])
    # 0.255 lies between the published keys 0.25 (of 1408x5760, which is 0.244) and 0.26.
    rule = BucketRule(kind="sana-2880", factor=64)
    assert bucket_for(254, 1000, rule)[0] == Bucket(1408, 5760)
    assert bucket_for(256, 1000, rule)[0] == Bucket(1408, 5568)
    # PRX: at 1024 32 patches a side; 24 patches wide leave room for 42 (1024 // 24), and the other way round.
    assert {Bucket(1344, 768), Bucket(768, 1344), Bucket(1408, 736), Bucket(1024, 1024)} <= set(tables["prx-1024"])
    assert bucket_for(2000, 1000, BucketRule(kind="prx-512"))[0] == Bucket(704, 352)


@given(sides, sides, st.sampled_from(["prx-512", "prx-1024"]))
def test_prx_is_nearest_in_width_over_height(height: int, width: int, kind: BucketKind) -> None:
    rule = BucketRule(kind=kind)
    bucket, _ = bucket_for(height, width, rule)
    ratio = width / height
    nearest = min(abs(b.width / b.height - ratio) for b in buckets_of(rule))
    assert abs(bucket.width / bucket.height - ratio) <= nearest + 1e-9 * ratio


def test_how_much_is_left_out_and_enlarged() -> None:
    square = BucketRule(kind="square", resolution=512)
    bucket, crop = bucket_for(1000, 2000, square)
    assert crop_share(1000, 2000, crop, bucket) == pytest.approx(0.5)
    assert enlargement(1000, 2000, crop) == pytest.approx(0.512)
    bucket, crop = bucket_for(256, 256, square)
    assert crop_share(256, 256, crop, bucket) == 0
    assert enlargement(256, 256, crop) == 2
    bucket, crop = bucket_for(48, 100, BucketRule(kind="native"))
    assert crop_share(48, 100, crop, bucket) == pytest.approx(1 - 32 * 96 / 4800)
    bucket, crop = bucket_for(900, 1200, BucketRule(kind="square", resolution=256, crop="adm"))
    assert crop_share(900, 1200, crop, bucket) == pytest.approx(0.25, abs=0.01)


@given(sides, sides, rules().filter(lambda rule: rule.kind != "native"))
def test_what_is_left_out_is_a_share(height: int, width: int, rule: BucketRule) -> None:
    bucket, crop = bucket_for(height, width, rule)
    assert 0 <= crop_share(height, width, crop, bucket) < 1
