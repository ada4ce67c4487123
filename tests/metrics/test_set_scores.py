"""FID and LPIPS: the sums are right, the same originals are used once, and what is missing is said in one line."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchmetrics.image.fid
from scipy.linalg import sqrtm
from torch import Tensor, nn

from dcae_cache.errors import CheckpointError, DCAECacheError, HubError, MissingExtraError, UsageError
from dcae_cache.metrics.set_scores import (
    ALEXNET_URL,
    FEW_IMAGES,
    INCEPTION_URL,
    Fid,
    Lpips,
    SetScore,
    lpips_if_at_hand,
)
from helpers.features import Features


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The formula of Heusel et al. 2017, with scipy's matrix root."""
    difference = first.mean(0) - second.mean(0)
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    return float(difference @ difference + np.trace(a + b - 2 * sqrtm(a @ b).real))


def expected(images: Tensor, reconstructions: Tensor) -> float:
    return frechet(Features()(images).double().numpy(), Features()(reconstructions).double().numpy())


def test_fid_is_the_frechet_distance_whatever_the_batches() -> None:
    images, ours = pictures(40, 1), pictures(40, 2) // 2
    fid = Fid(feature=Features())
    for start in (0, 7, 20):
        stop = {0: 7, 7: 20, 20: 40}[start]
        fid.add(images[start:stop], ours[start:stop])
    result = fid.result()
    assert result.value == pytest.approx(expected(images, ours), rel=1e-4)
    assert result.value > 0.1
    assert (result.num_images, result.label) == (40, "FID of 40 images")


def test_the_originals_are_seen_once_for_all_sides() -> None:
    images, features = pictures(30, 1), Features()
    fid = Fid(feature=features)
    for seed in (2, 3):
        ours = pictures(30, seed) // seed
        fid.start()
        fid.add(images, ours)
        assert fid.result().value == pytest.approx(expected(images, ours), rel=1e-4)
    assert features.seen == 30 + 2 * 30
    fid.start()
    fid.add(images[:20], images[:20])
    with pytest.raises(UsageError, match="30 images before and 20 now"):
        fid.result()


def test_a_side_that_broke_off_leaves_nothing_behind() -> None:
    images, ours = pictures(30, 1), pictures(30, 2) // 2
    fid = Fid(feature=Features())
    fid.start()
    fid.add(images[:9], ours[:9])
    fid.start()
    fid.add(images, ours)
    assert fid.result().value == pytest.approx(expected(images, ours), rel=1e-4)


def test_fid_of_a_pair_is_refused_and_of_few_is_warned_about() -> None:
    fid = Fid(feature=Features())
    fid.add(pictures(1, 1), pictures(1, 2))
    with pytest.raises(UsageError, match="says nothing about 1"):
        fid.result()
    fid.add(pictures(1, 3), pictures(1, 4))
    assert str(FEW_IMAGES) in (fid.result().note or "")
    fid = Fid(feature=Features())
    for seed in range(FEW_IMAGES // 256):
        fid.add(pictures(256, seed), pictures(256, seed))
    result = fid.result()
    assert result.note is None
    assert result.value == pytest.approx(0, abs=1e-4)


def make_file(path: Path, kind: str) -> Path:
    match kind:
        case "text":
            path.write_text("not weights")
        case "list":
            torch.save([1, 2], path)
        case "code":
            path.write_bytes(pickle.dumps(Path("anything but tensors")))
    return path


@pytest.mark.parametrize(("metric", "option"), [(Fid, "`fid_weights`"), (Lpips, "`lpips_weights`")])
@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("none", UsageError, "no such file"),
        ("text", CheckpointError, "is not a file of weights"),
        ("code", CheckpointError, "is not a file of weights"),
        ("list", CheckpointError, "holds no table of tensors"),
    ],
)
def test_files_that_are_no_weights(
    tmp_path: Path, metric: type, option: str, kind: str, error: type[DCAECacheError], said: str
) -> None:
    with pytest.raises(error) as raised:
        metric(make_file(tmp_path / "weights.pth", kind))
    assert said in str(raised.value)
    assert option in str(raised.value)
    assert "https://" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    for metric in (Fid, Lpips):
        with pytest.raises(MissingExtraError, match=r"pip install 'dcae-cache\[fid\]'"):
            metric()


def test_without_a_network_one_line_says_which_file_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**arguments: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchmetrics.image.fid, "FrechetInceptionDistance", unreachable)
    with pytest.raises(HubError, match="pass `fid_weights` FILE") as raised:
        Fid()
    assert INCEPTION_URL in str(raised.value)


class Distance(nn.Module):
    """Stands in for LPIPS' network: the mean absolute difference of two images in [-1, 1]."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        assert first.shape[0] == 1
        assert first.min() >= -1
        assert first.max() <= 1
        return (first - second).abs().mean()


def test_lpips_is_the_mean_over_images() -> None:
    images, ours = pictures(5, 1), pictures(5, 2)
    lpips = Lpips(network=Distance())
    assert lpips.result() == SetScore("LPIPS", None, 0, "no image was added")
    values = [*lpips.add(images[:2], ours[:2]), *lpips.add(images[2:], ours[2:])]
    want = (images.double() - ours.double()).abs().mean((1, 2, 3)) / 127.5
    assert values == pytest.approx(want.tolist(), rel=1e-5)
    assert lpips.result().value == pytest.approx(float(want.mean()), rel=1e-5)
    lpips.start()
    assert lpips.result().num_images == 0


def test_lpips_says_why_it_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metric, reason = lpips_if_at_hand(None)
    assert metric is None
    assert ALEXNET_URL in (reason or "")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ALEXNET_URL.rsplit("/", 1)[-1]).touch()
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    metric, reason = lpips_if_at_hand(None)
    assert metric is None
    assert "pip install 'dcae-cache[fid]'" in (reason or "")


def _extractors() -> object:
    """torch-fidelity, where it and a torchvision that fits torch are installed."""
    try:
        import torch_fidelity.feature_extractor_inceptionv3 as inception
    except (ImportError, RuntimeError) as error:  # torchvision of another torch raises the latter
        pytest.skip(f"torch-fidelity can't be imported: {error}")
    return inception


@pytest.mark.slow
def test_inception_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inception = _extractors()
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])  # random weights
    monkeypatch.undo()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    fid = Fid(tmp_path / "inception.pth")
    images = pictures(2, 1)
    fid.add(images, images)
    assert fid.result().value == pytest.approx(0, abs=1e-2)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit"):
        Fid(tmp_path / "other.pth")
