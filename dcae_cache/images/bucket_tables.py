"""The published tables of sizes that trainers use. Heights before widths, pixels; knows nothing of any rule.

Sana: ``ASPECT_RATIO_*`` of NVlabs/Sana and DC-Gen; the keys are h/w to two decimals, those of 2880 a little off.
PRX: Photoroom's ``build_image_size_list`` with patches of 32 pixels and aspect ratios from 0.5 to 2.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

from dcae_cache.records import Bucket

_SANA_512 = ((256, 1024), (256, 960), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384),
             (768, 320), (960, 256), (1024, 256))  # fmt: skip
_SANA_1024 = (
    (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600),
    (640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152),
    (896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960), (1088, 896),
    (1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704), (1536, 640),
    (1600, 640), (1664, 576), (1728, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip
_SANA_2880 = (  # 100 times the published key, height, width
    (25, 1408, 5760), (26, 1408, 5568), (27, 1408, 5376), (28, 1408, 5184), (32, 1600, 4992), (33, 1600, 4800),
    (34, 1600, 4672), (40, 1792, 4480), (42, 1792, 4288), (47, 1920, 4096), (49, 1920, 3904), (51, 1920, 3776),
    (55, 2112, 3840), (59, 2112, 3584), (68, 2304, 3392), (72, 2304, 3200), (78, 2496, 3200), (83, 2496, 3008),
    (89, 2688, 3008), (93, 2688, 2880), (100, 2880, 2880), (107, 2880, 2688), (112, 3008, 2688), (121, 3008, 2496),
    (128, 3200, 2496), (139, 3200, 2304), (147, 3392, 2304), (170, 3584, 2112), (182, 3840, 2112), (203, 3904, 1920),
    (213, 4096, 1920), (239, 4288, 1792), (250, 4480, 1792), (292, 4672, 1600), (300, 4800, 1600), (312, 4992, 1600),
    (368, 5184, 1408), (382, 5376, 1408), (395, 5568, 1408), (400, 5760, 1408),
)  # fmt: skip
_SANA = {
    "sana-256": tuple(Bucket(height // 4, width // 4) for height, width in _SANA_1024),
    "sana-512": tuple(Bucket(*sides) for sides in _SANA_512),
    "sana-1024": tuple(Bucket(*sides) for sides in _SANA_1024),
    "sana-2048": tuple(Bucket(2 * height, 2 * width) for height, width in _SANA_1024),
    "sana-2880": tuple(Bucket(height, width) for _, height, width in _SANA_2880),
    "sana-4096": tuple(Bucket(4 * height, 4 * width) for height, width in _SANA_1024),
}
_PRX_PATCH = 32


def _prx(side: int) -> tuple[Bucket, ...]:
    """For each number of patches along one side, as many along the other as the area of the square holds."""
    area = (side // _PRX_PATCH) ** 2
    counts = range(math.ceil(math.sqrt(area / 2)), math.floor(math.sqrt(area * 2)) + 1)
    pairs = {(count, area // count) for count in counts} | {(area // count, count) for count in counts}
    return tuple(Bucket(_PRX_PATCH * a, _PRX_PATCH * b) for a, b in sorted(pairs))


TABLES = {**_SANA, "prx-512": _prx(512), "prx-1024": _prx(1024)}


def nearest_in_table(height: int, width: int, kind: str) -> Bucket:
    """The size of a table that its trainers take for an image of that height and width."""
    if kind in _SANA:
        # By |h/w - key|, times 100 w; the smaller key when equal.
        return min(sana_keys(kind), key=lambda item: (abs(100 * height - item[0] * width), item[0]))[1]
    # By |w/h of the image - w/h|, times h; the smaller aspect ratio when equal.
    return min(
        TABLES[kind],
        key=lambda b: (Fraction(abs(b.width * height - width * b.height), b.height), Fraction(b.width, b.height)),
    )


@lru_cache(maxsize=len(_SANA))
def sana_keys(kind: str) -> tuple[tuple[int, Bucket], ...]:
    """(100 key, bucket) of a table of Sana: its trainers take the one whose key is nearest to height / width."""
    if kind == "sana-2880":
        return tuple((key, Bucket(height, width)) for key, height, width in _SANA_2880)
    # round() of a Fraction goes to even: 1856/512 = 3.625 is published as 3.62, 1984/512 = 3.875 as 3.88.
    return tuple((round(Fraction(100 * b.height, b.width)), b) for b in _SANA[kind])
