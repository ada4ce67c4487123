"""A decoding process that sleeps in place of reading and decoding. Imports no more than a real one does."""

from __future__ import annotations

import os
import time

import numpy as np

from dcae_cache.images.views import View
from dcae_cache.loading import decoder_process
from dcae_cache.records import Bucket, Crop, Pixels

PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from scripts.benchmarks.stub_decoder import main; main()"
)
SECONDS, SIDE = "DCAE_BENCH_SECONDS", "DCAE_BENCH_SIDE"  # in the environment: of one image


def pixels_of(side: int) -> Pixels:
    """A black image, band by band as those of a photo are."""
    data = np.zeros((3, side, side), dtype=np.uint8).transpose(1, 2, 0)
    return Pixels(data, side, side, Bucket(side, side), Crop(side, side, 0, 0))


def main() -> None:
    """Serve the process that started this one."""
    seconds, pixels = float(os.environ[SECONDS]), pixels_of(int(os.environ[SIDE]))

    def sleep(*_: object) -> list[tuple[View, Pixels]]:
        time.sleep(seconds)
        return [(View(pixels.bucket, pixels.crop, None), pixels)]

    decoder_process.load_fitted = sleep  # type: ignore[assignment]
    decoder_process.read_image_file = lambda file: b"an image"
    decoder_process.main()
