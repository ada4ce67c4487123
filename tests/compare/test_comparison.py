"""`compare`: the scores are those of plain Python, a failing model takes its cell, the grid cuts nothing off."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dcae_cache import DCAE
from dcae_cache.compare.comparison import CompareOptions, compare_images
from dcae_cache.compare.grid import CELL, Column, Pair, Row, draw_grid, grid_format, save_grid, shrink
from dcae_cache.errors import SourceError, UsageError
from dcae_cache.images.buckets import BucketRule
from dcae_cache.images.pixels import load_pixels
from dcae_cache.models.options import HubOptions
from helpers import command
from helpers.hub_server import HubServer, Repo
from helpers.images import encoded_image, make_folder, make_image
from helpers.models_for_comparison import save_model
from helpers.warm_command import Done

OFFLINE = HubOptions(offline=True, cache_dir="nowhere")


def run(*arguments: str | Path, expect: int = 0) -> Done:
    return command.run("compare", *arguments, "--device", "cpu", "--offline", expect=expect)


def options(*models: str | Path, **changes: object) -> CompareOptions:
    settings: dict[str, object] = {"resolution": 128, "device": "cpu", "hub": OFFLINE}
    return CompareOptions(models=tuple(map(str, models)), **(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models"), "kl")


def test_scores_are_those_of_plain_python(photos: Path) -> None:
    result = compare_images([photos], options("f32c32-tiny"))
    ae = DCAE("f32c32-tiny", "cpu")
    files = sorted(photos.rglob("*.jpg"))
    psnr, ssim = [], []
    for file in files:
        data = load_pixels(file.read_bytes(), BucketRule(kind="area", resolution=128), 10**8).data
        image = torch.from_numpy(data).permute(2, 0, 1)[None].float()
        ours = ((ae.decode(ae.encode(image / 127.5 - 1)) + 1) * 127.5).round().clamp(0, 255)
        psnr.append(float(peak_signal_noise_ratio(ours, image, data_range=255.0)))
        ssim.append(float(structural_similarity_index_measure(ours, image, data_range=255.0)))
    assert [image.path for image in result.images] == files
    assert [image.scores["f32c32-tiny"].psnr for image in result.images] == pytest.approx(psnr, abs=1e-3)
    assert [image.scores["f32c32-tiny"].ssim for image in result.images] == pytest.approx(ssim, abs=1e-4)
    mean = result.standings[0].mean
    assert mean is not None
    assert mean.psnr == pytest.approx(float(np.mean(psnr)), abs=1e-3)


def test_native_crops_alike_to_what_all_factors_divide(kl: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded_image(70, 101, kind="PNG"))
    alone = compare_images([tmp_path / "a.png"], options(kl, resolution=None))
    assert (alone.images[0].height, alone.images[0].width) == (68, 100)  # multiples of 4
    both = compare_images([tmp_path / "a.png"], options(kl, "f32c32-tiny", resolution=None))
    assert (both.images[0].height, both.images[0].width) == (64, 96)  # of 32, for both
    assert set(both.images[0].scores) == {str(kl), "f32c32-tiny"}


def test_a_model_that_fails_takes_its_cell(photos: Path, kl: Path) -> None:
    on_batch: list[tuple[int, int]] = []
    file = next(photos.rglob("*.jpg"))
    result = compare_images([file], options("taesd", kl), lambda done, total: on_batch.append((done, total)))
    first, second = result.standings
    assert "offline" in (first.failure or "")
    assert second.failure is None
    assert list(result.images[0].scores) == [str(kl)]
    assert on_batch == [(1, 2)]
    red = np.asarray(result.grid()).astype(int)
    assert ((red[..., 0] - red[..., 1]) > 100).sum() > 200  # the reason, in red


def test_images_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("text")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(encoded_image(64, 64)[:-400])
    for name, said in (
        ("bad.jpg", "not_an_image"),
        ("cut.jpg", "truncated"),
        ("none.jpg", "No such file"),
    ):
        with pytest.raises(SourceError, match=said) as raised:
            compare_images([tmp_path / name], options("f32c32-tiny"))
        assert name in str(raised.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="No images found"):
        compare_images([tmp_path / "empty"], options("f32c32-tiny"))


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`amplify`"):
        options("f32c32-tiny", amplify=0.0)
    with pytest.raises(UsageError, match="`models`"):
        options()
    wrong = {"grid.gif": r"is a \.png or \.jpg", "no/grid.png": "there is no folder", ".": r"is a \.png or \.jpg"}
    for name, said in wrong.items():
        with pytest.raises(UsageError, match=said):
            grid_format(tmp_path / name)


def test_the_command_writes_table_json_and_grid(photos: Path, kl: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.jpg"))[:2]
    both = ("--model", "f32c32-tiny", "--model", kl, "--model", "taesd", "--resolution", "128")
    done = run(*files, *both, "--out", tmp_path / "grid.jpg")
    assert "f32c32-tiny  32  32" in done.stdout
    assert "2 images on cpu in fp32" in done.stdout
    assert "LPIPS not computed: " in done.stdout
    assert "taesd failed: madebyollin/taesd" in done.stderr
    with Image.open(tmp_path / "grid.jpg") as grid:
        assert grid.format == "JPEG"
    values = json.loads(run(*files, *both, "--json").stdout)
    assert [model["name"] for model in values["models"]] == ["f32c32-tiny", "kl", "taesd"]
    tiny, taesd = values["models"][0], values["models"][2]
    assert tiny["mean"]["psnr"] > 15
    assert tiny["compression_ratio"] == 48
    assert taesd["mean"] is None
    assert "offline" in taesd["failure"]
    assert [Path(image["path"]) for image in values["images"]] == files


def test_the_command_fails_only_if_all_do(photos: Path, tmp_path: Path) -> None:
    file = next(photos.rglob("*.jpg"))
    done = run(file, "--model", "taesd", "--model", "f32c32-mixx", "--out", tmp_path / "grid.png", expect=1)
    assert "nearest: f32c32-mix" in done.stderr
    assert (tmp_path / "grid.png").exists()  # it says why
    (tmp_path / "bad.jpg").write_text("text")
    done = run(tmp_path / "bad.jpg", expect=1)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "--resolution" in run(file, "--resolution", "big", expect=2).stderr
    assert ".png or .jpg" in run(file, "--out", "grid.bmp", expect=2).stderr


def test_many_images_are_scored_but_not_all_drawn(tmp_path: Path, kl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcae_cache.compare.comparison.MAX_ROWS", 2)
    result = compare_images([make_folder(tmp_path / "photos", 5)], options(kl))
    assert len(result.images) == result.standings[0].num_images == 5
    assert result.grid().height < 2 * CELL + 300


def test_shrink_only_shrinks() -> None:
    assert shrink(make_image(100, 200)).size == (200, 100)
    assert shrink(make_image(400, 1000)).size == (CELL, 128)
    assert shrink(make_image(10000, 10)).size == (1, CELL)


class Recorder:
    """Remembers the box of every text and picture that is drawn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boxes: list[tuple[float, float, float, float]] = []
        text, paste = ImageDraw.ImageDraw.text, Image.Image.paste

        def recorded_text(draw, xy, line, *args, **kwargs):
            font = args[1]
            box = font.getbbox(line)
            self.boxes.append((xy[0] + box[0], xy[1] + box[1], xy[0] + box[2], xy[1] + box[3]))
            return text(draw, xy, line, *args, **kwargs)

        def recorded_paste(image, other, at=None, mask=None):
            if isinstance(at, tuple) and isinstance(other, Image.Image):
                self.boxes.append((at[0], at[1], at[0] + other.width, at[1] + other.height))
            return paste(image, other, at, mask)

        monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded_text)
        monkeypatch.setattr(Image.Image, "paste", recorded_paste)


def test_nothing_in_a_grid_overlaps_or_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    long = "a-very-long-name-without-any-break-" * 4
    rows = [Row(make_image(60, 40), long), Row(make_image(300, 320), "b.jpg, 300x320"), Row(make_image(320, 90), "c")]
    pairs = [Pair(row.original, row.original, f"PSNR 12.34 dB, {'SSIM 0.1234, ' * 8}") for row in rows]
    columns = [
        Column(long, ["a line that is much longer than the column is wide, " * 3] * 2, pairs),
        Column("one", ["x"], pairs[:1], failure="no memory " * 40),
        Column("none", [], [], failure=long * 3),
    ]
    picture = draw_grid(rows, columns, "footer " * 60)
    boxes = [box for box in recorder.boxes if box[2] > box[0]]
    assert len(boxes) > 40
    for number, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= picture.width
        assert bottom <= picture.height
        for other in boxes[:number]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, (
                boxes[number],
                other,
            )


def test_a_grid_is_written_whole(tmp_path: Path) -> None:
    save_grid(make_image(20, 20), tmp_path / "grid.PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.PNG"]


def test_models_from_the_hub(kl: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in kl.iterdir()}
    pickled = {"config.json": files["config.json"], "diffusion_pytorch_model.bin": b"pickle"}
    tiny = save_model(tmp_path, "tiny")
    repos = {
        "madebyollin/taesd": Repo({path.name: path.read_bytes() for path in tiny.iterdir()}),
        "owner/pipeline": Repo({"model_index.json": b"{}", **{f"vae/{name}": data for name, data in files.items()}}),
        "owner/gated": Repo(files, token="hf_good"),
        "owner/pickled": Repo(pickled),
    }
    (tmp_path / "a.png").write_bytes(encoded_image(64, 64, kind="PNG"))
    names = ["taesd", *list(repos)[1:], "owner/absent"]
    with HubServer(repos) as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        words = [
            *command.COMMAND,
            "compare",
            str(tmp_path / "a.png"),
            "--resolution",
            "native",
            "--device",
            "cpu",
            "--json",
        ]
        words += [word for name in names for word in ("--model", name)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=kept | settings)
    assert done.returncode == 0, done.stderr
    taesd, pipeline, *failing = json.loads(done.stdout)["models"]
    assert (taesd["failure"], taesd["name"], taesd["num_images"]) == (None, "taesd", 1)
    assert (pipeline["failure"], pipeline["latent_channels"]) == (None, 6)
    for model, said in zip(failing, ("is gated", "only safetensors is read", "is not on the hub"), strict=True):
        assert said in model["failure"]
