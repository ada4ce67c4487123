"""One picture of a few samples, decoded from their latents. Knows nothing of where it is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from ..compute.devices import pick_device
from ..decode.cache_model import CacheModel
from ..errors import CacheError, ModelError, VerificationError, one_line
from ..files import replace_atomically
from ..models.options import HubOptions
from ..reader.dataset import LatentDataset

_SAMPLES, _COLUMNS, _SIDE, _GAP = 8, 4, 256, 8  # pictures, and pixels
_PAPER = (250, 250, 248)


def draw_samples(
    cache: Path, out: Path, hub: HubOptions, model: str | None = None, device: str = "auto"
) -> str | None:
    """Write a JPEG of samples spread evenly over the cache; None, or in a few words why there is none.

    The model is taken from this machine alone: nothing is downloaded for a picture. ``model``: where it is now, if it
    moved. Raises UsageError for a device that isn't there.
    """
    dataset = LatentDataset(cache, columns=("key",))
    if len(dataset) == 0:
        return "the cache holds none"
    chosen = pick_device(device)
    try:
        decoder = CacheModel(dataset.index, chosen, model, replace(hub, offline=True))
    except (ModelError, VerificationError):
        return "their autoencoder was not at hand when this was uploaded"
    count = min(_SAMPLES, len(dataset))
    numbers = [number * len(dataset) // count for number in range(count)]
    try:
        images = [decoder.decode(dataset.stack([number]))[0] for number in numbers]
    except CacheError as error:
        return f"they can't be read: {one_line(error)}"
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    with replace_atomically(out) as file:
        _sheet(pictures).save(file, "JPEG", quality=92)
    return None


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    """The pictures in rows, each shrunk into a square."""
    rows = -(-len(pictures) // _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (columns * step + _GAP, rows * step + _GAP), _PAPER)
    for number, picture in enumerate(pictures):
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        row, column = divmod(number, _COLUMNS)
        left = _GAP + column * step + (_SIDE - picture.width) // 2
        top = _GAP + row * step + (_SIDE - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet
