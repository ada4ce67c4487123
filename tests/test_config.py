"""EncodeConfig and RunOptions: what makes no sense by itself is refused when it is stated, in the argument's name."""

from __future__ import annotations

from typing import Any

import pytest

from dcae_cache import DCAE, EncodeConfig, RunOptions
from dcae_cache.errors import UsageError


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (EncodeConfig, {"dtype": "fp8"}, "`dtype` is one of bf16, fp16, fp32, not 'fp8'"),
        (EncodeConfig, {"compute_dtype": "float32"}, "`compute_dtype` is one of bf16, fp16, fp32, not 'float32'"),
        (EncodeConfig, {"max_pixels": 0}, "at least 1, not 0"),
        (EncodeConfig, {"scaling_factor": float("nan")}, "above 0, not nan"),
        (RunOptions, {"workers": 0}, "at least 1, not 0"),
        (RunOptions, {"max_skip_rate": 1.5}, "between 0 and 1, not 1.5"),
        (RunOptions, {"prune": True, "limit": 3}, "can't be combined"),
        (RunOptions, {"part_range": (4, 4)}, "not 4/4"),
        (DCAE, {"model": "f32c32-tiny", "device": "gpu"}, "`device` is 'gpu', expected one such as 'cpu'"),
    ],
)
def test_senseless_settings_are_refused(kind: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        kind(**changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_clashes_with_the_model_are_found_by_the_rule() -> None:
    assert EncodeConfig(bucket="sana-512").bucket_rule(32).kind == "sana-512"
    for config in (EncodeConfig(bucket="wide"), EncodeConfig(crop="adm"), EncodeConfig(bucket="sana-512")):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            config.bucket_rule(128)
