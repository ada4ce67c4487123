"""``scripts/bench NAME [options]``: run one benchmark."""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = {
    "all": "all of the others, every target beside what was found, and JSON",
    "encoder": "the f32c32 encoder against diffusers' AutoencoderDC and the device's matmul rate",
    "lock": "decoding beside a thread that feeds a GPU, on threads and in processes",
    "images": "encoded bytes to pixels against PIL + the ADM crop",
    "urls": "a thousand addresses on loopback, every tenth dead: time, requests, connections",
    "encode": "a whole run against the bare encoder and against DataLoader + encode + np.save",
    "sizes": "several sizes of each image in one pass against a run for each",
    "verify": "verify against reading the images and the network there and back, alone",
    "sources": "a whole run from tars and from parquet files; listing a million files",
    "export": "each trainer format against a loop of torch.save, images/s and memory",
    "distributed": "work pulled from the queue against work dealt out, with uneven parts and a slow worker",
    "reader": "shuffled batches against .npy files, LightningDiT, litdata, mosaicml-streaming and a bare gather",
    "startup": "help, info, the first image, and a run that finds a million samples made: time and memory",
    "simulation": "every step but the encoding for a million samples in ten thousand parts",
}


def main() -> None:
    """Hand the remaining arguments to the benchmark named first."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        lines = [f"  {known:11} {what}" for known, what in BENCHMARKS.items()]
        sys.exit("\n".join(["usage: scripts/bench NAME [options]; --help after a name shows its options", *lines]))
    import_module(f"scripts.benchmarks.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
