#!/usr/bin/env python3
"""Train f32c32-tiny, the small DC-AE that the package ships, from a folder of photos.

Starts at the linear optimum (hierarchical PCA), then minimises the pixel error of small random crops. A checkpoint in
``--out`` lets ``--resume`` go on where a run stopped, and ``--export-only`` write the model as it stands.

    python scripts/train_tiny.py PHOTOS --out RUN --minutes 75 --kodak KODAK
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny.export import export
from tiny.optimizer import WeightMean, build_optimizer
from tiny.pca_init import start_at_pca, tiny_spec
from tiny.photos import Photo, draw_crops, list_photos, load_pool, split_photos, whole_photos
from tiny.scores import score
from torch import Tensor
from tqdm import tqdm

from dcae_cache.compute.ranges import to_unit
from dcae_cache.models.network import DCAENetwork

CHECKPOINT = "checkpoint.pt"
PCA_CROP = 256
RECIPE = ("batch", "crop", "late_crop", "late_share", "short_sides", "lr", "warm_up")
RECIPE += ("clip", "loss_floor", "ema", "held_out", "seed")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; the defaults are the recipe of the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("photos", type=Path, help="folder of photos to train on")
    add("--out", type=Path, required=True, help="folder for the checkpoint and the exported model")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=70.0, help="wall time of the schedule (default 70)")
    length.add_argument("--steps", type=int, help="length of the schedule in steps, instead of in minutes")
    add("--kodak", type=Path, help="folder of pictures for the final scores; never trained on")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, help="CPU threads; 1 is best on a busy machine, where threads wait for each other")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--export-only", action="store_true", help="export the checkpoint in --out and train no further")
    add("--export-to", type=Path, help="folder for the exported model (default: --out)")
    add("--held-out", type=int, default=60, help="photos kept aside for choosing between variants")
    add("--batch", type=int, default=8)
    add("--crop", type=int, default=128)
    add("--late-crop", type=int, default=256, help="crop size near the end, at as many pixels a batch")
    add("--late-share", type=float, default=0.1, help="share of the schedule with --late-crop")
    add("--short-sides", type=int, nargs="*", default=[288], help="sizes that photos are shrunk to, besides their own")
    add("--lr", type=float, default=1e-3)
    add("--warm-up", type=int, default=100, help="steps")
    add("--clip", type=float, default=1.0, help="largest gradient norm")
    add(
        "--loss-floor",
        type=float,
        default=0.004,
        help="added to a crop's squared error before the logarithm; 0: no log",
    )
    add("--ema", type=float, default=0.998)
    add("--evaluate-every", type=float, default=10.0, help="minutes between scores on the photos kept aside")
    add("--no-compile", action="store_true")
    return parser.parse_args(arguments)


@dataclass
class Run:
    """Everything a checkpoint holds, and what is needed to go on."""

    network: DCAENetwork
    optimizer: torch.optim.Optimizer
    mean: WeightMean
    rng: np.random.Generator
    recipe: dict[str, Any]
    step: int = 0
    crops: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write beside the target, then rename: a killed run never leaves half a checkpoint."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean.values,
            "rng": json.dumps(self.rng.bit_generator.state),
            "recipe": self.recipe,
            "counts": [self.step, self.crops, self.seconds],
            "history": self.history,
        }
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    def load(self, path: Path, device: torch.device) -> None:
        """The inverse of ``save``."""
        state = torch.load(path, map_location=device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean.values = state["mean"]
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step, self.crops, self.seconds = state["counts"]
        self.recipe, self.history = state["recipe"], state["history"]

    def averaged(self) -> DCAENetwork:
        """A plain network with the averaged weights, in fp32: what is scored and exported."""
        network = DCAENetwork(tiny_spec()).to(self.mean.values[0].device)
        with torch.no_grad():
            for param, value in zip(network.parameters(), self.mean.values, strict=True):
                param.copy_(value)
        return network


def set_up(args: argparse.Namespace, device: torch.device, pool: list[Photo]) -> Run:
    """A run at its start: the network at the PCA of some crops, unless a checkpoint will replace it."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    network = DCAENetwork(tiny_spec())
    if pool and not args.resume:
        start_at_pca(network, to_unit(draw_crops(pool, rng, 600, PCA_CROP)))
    network = network.to(device, memory_format=torch.channels_last)
    recipe = {key: getattr(args, key) for key in RECIPE}
    run = Run(network, build_optimizer(network, args.lr), WeightMean(network, args.ema), rng, recipe)
    if args.resume or args.export_only:
        run.load(args.out / CHECKPOINT, device)
    return run


def saved_recipe(path: Path) -> dict[str, Any]:
    """The options that a checkpoint was trained with: they outrank the command line."""
    recipe: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["recipe"]
    return recipe


def rate(step: int, progress: float, warm_up: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to nothing."""
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def crop_loss(out: Tensor, target: Tensor, floor: float) -> Tensor:
    """Mean log of each crop's squared error, which is what PSNR averages; plain squared error if the floor is 0.

    The log makes smooth crops count as much as busy ones; that is where a block grid would show.
    """
    errors = (out.float() - target).square().mean(dim=(1, 2, 3))
    return torch.log(errors + floor).mean() if floor else errors.mean()


def train_step(run: Run, model: Any, batch: Tensor, share: float, args: argparse.Namespace) -> Tensor:
    """One update of the weights and of their mean."""
    target = to_unit(batch).contiguous(memory_format=torch.channels_last)
    with torch.autocast(target.device.type, torch.bfloat16):
        out = model(target)
    loss = crop_loss(out, target, args.loss_floor)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), args.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = args.lr * share
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.mean.update(run.step)
    run.step += 1
    run.crops += len(batch)
    return loss.detach()


class Autoencode(torch.nn.Module):
    """Encode and decode in one call, so that one graph is compiled."""

    def __init__(self, network: DCAENetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.network.decoder(self.network.encoder(pixels))
        return out


def progress_of(run: Run, args: argparse.Namespace) -> float:
    """How far the schedule has come, by steps if those are given, else by the wall clock."""
    return run.step / args.steps if args.steps else run.seconds / (60 * args.minutes)


def batch_shape(args: argparse.Namespace, late: bool) -> tuple[int, int]:
    """Crops a batch and their size; larger ones late, so that attention sees more of a picture."""
    size = args.late_crop if late else args.crop
    return max(1, args.batch * args.crop**2 // size**2), size


def compile_ahead(model: Any, device: torch.device, args: argparse.Namespace) -> None:
    """Compile for both crop sizes before the clock starts: it takes minutes on a CPU."""
    for late in (False, True):
        count, size = batch_shape(args, late)
        pixels = torch.zeros(count, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            out = model(pixels)
        out.float().sum().backward()
        model.zero_grad(set_to_none=True)


def train(run: Run, pool: list[Photo], held_out: list[Path], args: argparse.Namespace, device: torch.device) -> None:
    """Run the schedule to its end, with a checkpoint every two minutes and a score now and then."""
    model: Any = Autoencode(run.network)
    model = model if args.no_compile else torch.compile(model, dynamic=False)
    compile_ahead(model, device, args)
    bar = tqdm(total=args.steps, initial=run.step, unit="step", mininterval=5.0)
    last = time.monotonic()
    saved, scored = run.seconds, run.seconds
    while (progress := progress_of(run, args)) < 1.0:
        batch = draw_crops(pool, run.rng, *batch_shape(args, late=progress > 1 - args.late_share)).to(device)
        loss = train_step(run, model, batch, rate(run.step, progress, args.warm_up), args)
        now = time.monotonic()
        run.seconds, last = run.seconds + now - last, now
        bar.update()
        if run.step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss):.4f}", done=f"{progress:.1%}", refresh=False)
        if run.seconds - scored > 60 * args.evaluate_every:
            scored = run.seconds
            note_score(run, held_out)
            last = time.monotonic()
        if run.seconds - saved > 120:
            saved = run.seconds
            run.save(args.out / CHECKPOINT)
    bar.close()
    run.save(args.out / CHECKPOINT)


def note_score(run: Run, held_out: list[Path]) -> None:
    """Score the averaged weights on the photos kept aside; the clock stands still meanwhile."""
    result = score(run.averaged(), whole_photos(held_out, None))
    run.history.append({"step": run.step, "minutes": round(run.seconds / 60, 1), "psnr": round(result["psnr"], 3)})
    tqdm.write(json.dumps(run.history[-1]))


def main() -> None:
    """Train (or only load), then export."""
    args = parse_args()
    name = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume or args.export_only:
        vars(args).update(saved_recipe(args.out / CHECKPOINT))
    paths, held_out = split_photos(list_photos(args.photos), args.held_out, args.seed)
    smallest = max(args.crop, args.late_crop, PCA_CROP)
    pool = [] if args.export_only else load_pool(paths, (None, *args.short_sides), smallest)
    run = set_up(args, device, pool)
    if not args.export_only:
        train(run, pool, held_out, args, device)
    facts = {
        "recipe": run.recipe,
        "photos": {"train": len(paths), "held_out": len(held_out)},
        "steps": run.step,
        "crops": run.crops,
        "minutes": round(run.seconds / 60, 1),
        "device": name,
        "history": run.history,
    }
    metrics = export(run.averaged(), tiny_spec(), args.export_to or args.out, paths, held_out, args.kodak, facts)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
