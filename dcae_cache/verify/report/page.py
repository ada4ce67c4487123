"""``index.html``: the figures and pictures of a report as one page that asks for nothing from anywhere.

What was found in the data (keys, captions, paths, messages) is text here: jinja2 escapes all of it, and
no control byte gets in. Knows nothing of
caches.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ...text import counted, human_bytes, printable
from ..pictures import Picture
from .plots import HEIGHT, WIDTH, channels, histogram

_LARGEST = 640  # side of a picture in pixels; of larger ones the centre is shown, never a shrunk copy
_MOST_BUCKETS, _MOST_FINDINGS = 30, 100


def render(values: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """The page as HTML. ``values`` are those of ``report.json``."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    environment.filters |= {"bytes": human_bytes, "seconds": _seconds, "fixed": _fixed}
    here = files(__package__)
    template = environment.from_string((here / "page.html").read_text("utf-8"))
    return template.render(
        style=Markup((here / "style.css").read_text("utf-8")),
        script=Markup((here / "page.js").read_text("utf-8")),
        report=values,
        verdict=verdict(values),
        pictures=[_shown(picture, values["samples"][picture.key]) for picture in pictures],
        score_plots=_score_plots(values["samples"].values()),
        channel_plot=_channel_plot(values["statistics"]),
        buckets=_bars(values["buckets"] or {}),
        num_buckets=len(values["buckets"] or {}),
        findings=values["findings"][:_MOST_FINDINGS],
        plot_size=(WIDTH, HEIGHT),
    )


def verdict(values: Mapping[str, Any]) -> str:
    """The report in one sentence."""
    count, decoded, mean = len(values["findings"]), values["num_decoded"], values["mean"]
    size = f"{counted(values['num_samples'], 'sample')} in {counted(values['num_parts'], 'part')}"
    if count:
        return f"{counted(count, 'problem')} found in {size}"
    if not decoded:
        return f"Whole: {size}, every file as it was written. No latent was decoded"
    psnr = "without loss" if mean["psnr"] is None else f"at a mean PSNR of {mean['psnr']:.2f} dB"
    return f"Right: {size}, every file as it was written; {decoded:,} decoded, {psnr}"


def _score_plots(samples: Any) -> list[Any]:
    found = []
    for name, title, unit in (
        ("psnr", "PSNR of the decoded samples", "dB"),
        ("ssim", "SSIM of the decoded samples", ""),
    ):
        plot = histogram([sample[name] for sample in samples if sample[name] is not None], title, unit)
        found += [plot] if plot is not None else []
    return found


def _channel_plot(statistics: Mapping[str, Any] | None) -> Any:
    if statistics is None:
        return None
    return channels(statistics["mean"], statistics["std"], "Latents by channel: mean, and one std to either side")


def _bars(buckets: Mapping[str, int]) -> list[dict[str, Any]]:
    """The fullest buckets, and how long their bars are in percent."""
    most = max(buckets.values(), default=1)
    fullest = sorted(buckets.items(), key=lambda item: (-item[1], item[0]))[:_MOST_BUCKETS]
    return [{"name": name, "count": count, "percent": 100 * count / most} for name, count in fullest]


def _shown(picture: Picture, scores: Mapping[str, Any]) -> dict[str, Any]:
    height, width = picture.original.shape[1:]
    shown = min(height, _LARGEST), min(width, _LARGEST)
    return {
        "key": picture.key,
        "rank": picture.rank,
        "caption": picture.caption,
        "size": f"{height}x{width}",
        "part": None if shown == (height, width) else f"the middle {shown[0]}x{shown[1]} are shown",
        "height": shown[0],
        "width": shown[1],
        "original": _png(picture.original),
        "reconstruction": _png(picture.reconstruction),
        "scores": scores,
    }


def _png(image: Tensor) -> str:
    """A picture [3, H, W], or its middle, as a data URI: lossless, so that what is seen is what was decoded."""
    height, width = image.shape[1:]
    top, left = max(0, height - _LARGEST) // 2, max(0, width - _LARGEST) // 2
    middle = image[:, top : top + _LARGEST, left : left + _LARGEST]
    buffer = io.BytesIO()
    Image.fromarray(middle.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _printable(value: Any) -> Any:
    """Text of the data without control bytes; line ends are a page's own affair. Ours is Markup."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value, keep="\n\t") if is_text else value


def _fixed(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; what JSON has no number for is infinite."""
    return "∞" if value is None else f"{value:,.{digits}f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
