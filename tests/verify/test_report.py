"""The report: every figure in report.json, a page that needs and asks for nothing else, and text that stays text."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcae_cache.errors import CacheError
from dcae_cache.models.options import HubOptions
from dcae_cache.verify.checks import VerifyOptions, verify_cache
from dcae_cache.verify.pictures import choose
from dcae_cache.verify.report import write_report
from dcae_cache.verify.report.page import verdict
from dcae_cache.verify.report.plots import HEIGHT, WIDTH, channels, histogram, ticks
from dcae_cache.verify.report.values import values_of
from helpers.command import run
from helpers.false_caches import falsify
from helpers.images import encode, encoded_image, make_folder

HOSTILE = "<script>alert('&\"')</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def report_on(cache: Path, out: Path, **options: Any) -> tuple[dict[str, Any], str]:
    """report.json and index.html of a cache."""
    hub = HubOptions(offline=True, cache_dir="nowhere")
    settings = {"device": "cpu", "samples": None, "pictures": True, "hub": hub} | options
    page = write_report(verify_cache(cache, VerifyOptions(**settings)), out)
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "report.json"]
    return json.loads((out / "report.json").read_text()), page.read_text()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose keys, captions and skipped files try to be HTML."""
    root = tmp_path_factory.mktemp("hostile")
    source = make_folder(root / "photos", 4)
    for number, name in enumerate(("<b>bold", "a&b;' onerror='x", "ünï✓")):
        (source / f"{name}.jpg").write_bytes(encoded_image(200, 300, seed=50 + number))
        (source / f"{name}.txt").write_text(HOSTILE)
    (source / "broken.jpg").write_text("text")
    encode(source, root / "out <i>")
    return root / "out <i>"


@pytest.fixture(scope="module")
def page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    report_on(hostile, out, against=("f32c32-tiny", "no/such"))
    return out / "index.html"


class Tags(HTMLParser):
    """The start tags of a page, and its text by the element it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "input", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def test_the_figures_are_those_of_the_verification(cache: Path, tmp_path: Path) -> None:
    result = verify_cache(cache, VerifyOptions(device="cpu", samples=None, pictures=True))
    values, text = report_on(cache, tmp_path / "report")
    assert values["ok"]
    assert values["num_decoded"] == len(values["samples"]) == 20
    assert result.mean is not None
    assert values["mean"]["psnr"] == pytest.approx(result.mean.psnr)
    assert values["buckets"] == values_of(result)["buckets"]
    assert sum(values["buckets"].values()) == 20
    assert len(values["statistics"]["std"]) == 32
    assert f"{result.mean.psnr:.2f}" in text
    assert f"{result.mean.ssim:.4f}" in text
    assert "Right: 20 samples in 3 parts" in text
    ranked = sorted(values["samples"], key=lambda key: values["samples"][key]["psnr"])
    assert [picture["key"] for picture in values["pictures"]][:3] == ranked[:3]
    assert [picture["key"] for picture in values["pictures"]][6:] == ranked[:-4:-1]


def test_the_pictures_are_the_pixels_themselves(cache: Path, photos: Path, tmp_path: Path) -> None:
    result = verify_cache(cache, VerifyOptions(device="cpu", samples=None, pictures=True))
    write_report(result, tmp_path)
    sources = [
        attributes["src"] for tag, attributes in Tags((tmp_path / "index.html").read_text()).tags if tag == "img"
    ]
    assert len(sources) == 18
    for picture, original, ours in zip(result.pictures, sources[::2], sources[1::2], strict=True):
        for uri, expected in ((original, picture.original), (ours, picture.reconstruction)):
            assert uri is not None
            found = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
            assert np.array_equal(np.asarray(found), expected.permute(1, 2, 0).numpy())


def test_the_middle_of_a_large_picture_is_shown_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/large.png").write_bytes(encoded_image(768, 768, kind="PNG"))
    encode(tmp_path / "photos", tmp_path / "out", resolution=768)
    _, text = report_on(tmp_path / "out", tmp_path / "report")
    (tag, *_) = [attributes for tag, attributes in Tags(text).tags if tag == "img"]
    uri = str(tag["src"]).removeprefix("data:image/png;base64,")
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    original = np.asarray(Image.open(tmp_path / "photos/large.png"))
    assert np.array_equal(found, original[64:704, 64:704])
    assert "768x768, the middle 640x640 are shown" in text


def test_whatever_the_data_says_stays_text(page: Path) -> None:
    text = page.read_text()
    tags = Tags(text)
    assert tags.open == []
    assert tags.count("script") == tags.count("style") == 1
    assert tags.count("b") == text.count("<b>") == 6  # of the tiles
    assert "<i>" not in text
    assert "&lt;b&gt;bold" in text
    assert "&lt;script&gt;alert(" in text
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert "ünï✓" in text
    values = json.loads((page.parent / "report.json").read_text())
    assert "<b>bold" in values["samples"]
    assert values["skipped"] == {"not_an_image": 1}
    assert "not_an_image" in text


def test_the_page_refers_to_nothing_outside_itself(page: Path) -> None:
    tags = Tags(page.read_text())
    for tag, attributes in tags.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert str(attributes.get(name, "data:")).startswith("data:"), f"<{tag} {name}={attributes[name]}>"
    code = (Path(sys.modules["dcae_cache.verify.report"].__file__ or "").parent / "style.css").read_text()
    assert "url(" not in code
    assert "@import" not in code
    policies = [str(a["content"]) for _, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert policies[0].startswith("default-src 'none'; img-src data:;")


def test_sides_and_their_failures_stand_in_the_table(page: Path) -> None:
    text = page.read_text()
    assert re.search(r'<th scope="row">out &lt;i&gt; \(stored\)</th>\s*<td>32</td>', text)
    assert re.search(r'<th scope="row">no/such</th>\s*<td colspan="13" class="failure"><span>[^<]*no/such', text)


def test_problems_come_first(cache: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    falsify(copy, "part-000000", lambda tensors: tensors["latents.4x4"][0].mul_(1.01))
    values, text = report_on(copy, tmp_path / "report")
    assert not values["ok"]
    assert "1 problem found in 20 samples in 3 parts" in text
    assert 'class="verdict bad"' in text
    assert "times 1.01" in text
    assert len(values["pictures"]) == 9


def test_a_report_without_decoding_and_one_without_an_index(cache: Path, tmp_path: Path) -> None:
    values, text = report_on(cache, tmp_path / "a", integrity_only=True)
    assert values["mean"] is None
    assert "No latent was decoded" in text
    assert "<img" not in text
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    (copy / "index.json").write_text("{}")
    values, text = report_on(copy, tmp_path / "b")
    assert values["statistics"] is None
    assert "1 problem found in 0 samples" in text


def test_few_samples_are_each_shown_once() -> None:
    assert choose([]) == {}
    assert choose(["a"]) == {"a": "worst"}
    assert choose(list("abcd")) == {"a": "worst", "b": "worst", "c": "worst", "d": "best"}
    assert list(choose(list("abcdefg"))) == ["a", "b", "c", "d", "g", "f", "e"]
    many = choose([f"{number:03d}" for number in range(101)])
    assert [key for key, rank in many.items() if rank == "median"] == ["049", "050", "051"]


def test_equal_images_have_a_psnr_that_json_can_hold() -> None:
    values: dict[str, Any] = {
        "findings": [],
        "num_samples": 1,
        "num_parts": 1,
        "num_decoded": 1,
        "mean": {"psnr": None},
    }
    assert verdict(values) == "Right: 1 sample in 1 part, every file as it was written; 1 decoded, without loss"


def test_histograms_count_everything_and_stay_in_their_frame() -> None:
    random = np.random.default_rng(0)
    for values in ([1.0], [3.0, 3.0], random.normal(30, 4, 1000).tolist(), [1e-9, 2e-9], [0.1] * 9 + [100.0]):
        plot = histogram(values, "t", "dB")
        assert plot is not None
        assert sum(int(mark.label.split()[0]) for mark in plot.marks) == len(values)
        assert plot.line is not None
        for mark in plot.marks:
            assert mark.width > 0
            assert 0 <= mark.x <= mark.x + mark.width <= WIDTH
            assert 0 <= mark.y <= mark.y + mark.height <= HEIGHT
    assert histogram([], "t", "") is None


def test_channels_and_ticks() -> None:
    plot = channels([0.0, 1.0, -2.0], [1.0, 0.5, 0.0], "t")
    assert plot is not None
    assert len(plot.marks) == len(plot.dots) == 3
    assert plot.marks[0].height > plot.marks[1].height > plot.marks[2].height
    assert plot.dots[1].y < plot.dots[0].y < plot.dots[2].y
    assert channels([], [], "t") is None
    assert channels([0.0], [0.0], "t") is not None
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(21.3, 22.1, 4) == pytest.approx([21.4, 21.6, 21.8, 22.0])
    assert ticks(1, 1, 5) == [1]


def test_a_folder_that_cannot_be_made_is_known_at_once(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match=r"Can't write .*/file: File exists"):
        write_report(verify_cache(cache, VerifyOptions(integrity_only=True)), tmp_path / "file")
    done = run("verify", cache, "--report", tmp_path / "file", expect=1)
    assert done.stderr.startswith(f"error: Can't write {tmp_path}/file: File exists")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_the_command_writes_the_report_and_prints_the_same_json(cache: Path, tmp_path: Path) -> None:
    done = run("verify", cache, "--device", "cpu", "--samples", 3, "--report", tmp_path / "a/b", "--json")
    assert f"report: {tmp_path}/a/b/index.html" in done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "a/b/report.json").read_text())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser_it_works_and_asks_for_nothing(page: Path, width: int, tmp_path: Path) -> None:
    """In a frame as wide as a phone or a desktop; the frame's page reports what became of the report."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<iframe src="{page.as_uri()}" style="width:{width}px;height:3000px;border:0"></iframe><script>
        onload = () => setTimeout(() => {{
          const inner = document.querySelector("iframe").contentDocument, section = inner.getElementById("pictures");
          const seen = {{
            pictures: inner.querySelectorAll("article").length, overlaid: inner.querySelectorAll(".over img").length,
            loaded: [...inner.images].every((image) => image.complete && image.naturalWidth > 0),
            requested: inner.defaultView.performance.getEntriesByType("resource").map((entry) => entry.name),
            view: section.dataset.view, wide: inner.documentElement.scrollWidth,
            marks: inner.querySelectorAll("rect").length }};
          inner.querySelector('input[value="difference"]').click();
          seen.shown = [...inner.querySelector(".stage").children]
            .filter((figure) => figure.getBoundingClientRect().width > 0).map((figure) => figure.className);
          document.body.textContent = JSON.stringify(seen);
        }}, 500);</script>"""
    )
    shot = tmp_path / "shot.png"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--allow-file-access-from-files", "--enable-logging=stderr", "--virtual-time-budget=4000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    seen = json.loads(re.search(r"<body>(\{.*?\})</body>", done.stdout, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert "CONSOLE" not in done.stderr
    assert seen["pictures"] == 7
    assert seen["overlaid"] == 4 * 7
    assert seen["loaded"]
    assert seen["view"] == ("slider" if width == 390 else "side")
    assert seen["shown"] == ["difference"]
    assert seen["wide"] <= width, "it must not scroll sideways"
    assert seen["marks"] > 40
    assert all(name.startswith("data:") for name in seen["requested"])
    command += [f"--screenshot={shot}", f"--window-size={max(width, 500)},2000"]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120)
    with Image.open(shot) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 1000
