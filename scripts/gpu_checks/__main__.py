"""``scripts/gpu``: checks first, then figures, within a budget of time; exit code 1 when a check fails."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from dcae_cache.images.formats import IMAGE_SUFFIXES

from . import correctness, speed, variants
from .bench import Bench

EXAMPLES = Path(__file__).parents[2] / "examples" / "photos"
# section -> seconds that it needs on a GPU, about
SECTIONS = {
    correctness.environment: 1,
    correctness.golden_vectors: 40,
    correctness.cpu_against_device: 30,
    correctness.memory_runs_out: 30,
    correctness.half_precision_overflows: 20,
    correctness.whatever_the_caller_has_set: 15,
    correctness.the_same_bytes_again: 60,
    correctness.the_command_line: 60,
    variants.the_kernels: 20,
    variants.recorded_work: 20,
    speed.ceilings: 10,
    variants.kernels_against_torch: 40,
    variants.the_host_s_side: 15,
    speed.whole_runs: 60,
    speed.encoder_against_diffusers: 60,
    speed.decoding_by_threads: 30,
}


def main() -> None:
    """Run the sections in order."""
    options = _parse()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(torch.device(options.device), options.quick, _photos(options), Path(work), options.seconds)
        (bench.work / "photos").mkdir()
        for path in bench.photos[: 12 if options.quick else 96]:
            (bench.work / "photos" / path.name).symlink_to(path.resolve())
        for section, needs in SECTIONS.items():
            if not options.only or section.__name__ in options.only:
                bench.run(section, 0 if options.quick else needs)
        good = bench.summary()
        if options.out:
            bench.save(options.out)
    sys.exit(not good)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description=__doc__)
    parser.add_argument("--photos", type=Path, default=EXAMPLES, help="a folder of photos")
    parser.add_argument("--out", type=Path, help="where gpu.json with all checks and figures goes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small inputs: whether everything runs, not how fast")
    parser.add_argument("--seconds", type=float, default=540, help="the budget; sections that don't fit are left out")
    parser.add_argument("--only", nargs="+", choices=[section.__name__ for section in SECTIONS])
    return parser.parse_args()


def _photos(options: argparse.Namespace) -> list[Path]:
    found = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        sys.exit(f"error: there are no photos in {options.photos}")
    return found[:24] if options.quick else found


if __name__ == "__main__":
    main()
