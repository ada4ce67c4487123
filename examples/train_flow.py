"""Train a small class-conditional DiT on a cache by flow matching: python examples/train_flow.py CACHE

Every bucket of the cache is trained on; at the end samples are decoded to OUT/samples.png. Runs on one process, or on
several through torchrun or accelerate. Killed at any point, the same command goes on from the last checkpoint, on as
many ranks as it is given then, with exactly the samples of the epoch that are still missing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from dcae_cache import DCAE, BucketBatchSampler, LatentDataset, LatentLoader
from dcae_cache.reader.transforms import ClassLabels, Drop, Normalize

DROPPED = 0.1  # of the labels, so that samples can be guided away from "any class"


class Block(nn.Module):
    """A transformer block whose normalisations are set by the condition (adaLN-Zero, Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm1(x) * (1 + scale1) + shift1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + gate1 * self.out(attended)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Velocity [N, c, h, w] of latents of any size, at times [N] in [0, 1], for labels [N] (the last one: any)."""

    def __init__(self, channels: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.width, self.classes = width, classes
        self.enter, self.leave = nn.Linear(channels, width), nn.Linear(width, channels)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, width // 64) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = waves(torch.arange(height), self.width // 2), waves(torch.arange(width), self.width // 2)
        grid = (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1))
        tokens = self.enter(x.flatten(2).transpose(1, 2)) + torch.cat(grid, -1).flatten(0, 1).to(x)
        condition = self.time(waves(1000 * t, self.width).to(x)) + self.label(labels)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.leave(self.norm(tokens)).transpose(1, 2).unflatten(2, (height, width))


def waves(values: Tensor, size: int) -> Tensor:
    """Sines and cosines [N, size] of falling frequency, as in Vaswani et al. 2017."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(size // 2, device=values.device) / (size // 2))
    angles = values[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


def flow_loss(model: nn.Module, x: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
    """Rectified flow (Liu et al. 2022), times drawn as by Esser et al. 2024: sigmoid of a normal."""
    noise = torch.randn(x.shape, generator=random).to(x)
    t = torch.randn(len(x), generator=random).sigmoid().to(x)
    between = torch.lerp(x, noise, t[:, None, None, None])
    return F.mse_loss(model(between, t, labels), noise - x)


@torch.no_grad()
def generate(model: DiT, shape: tuple[int, ...], labels: Tensor, steps: int, guidance: float) -> Tensor:
    """Latents as the model was trained on, by Euler steps from noise with classifier-free guidance."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(labels.device)
    anything = torch.full_like(labels, model.classes)
    for step in range(steps, 0, -1):
        t = torch.full((len(x),), step / steps, device=x.device)
        free = model(x, t, anything)
        x = x - (free + guidance * (model(x, t, labels) - free)) / steps
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", help="a folder or a URL: hf://datasets/owner/name, s3://..., https://...")
    parser.add_argument("--out", type=Path, default=Path("flow"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16, help="on each process")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-samples", action="store_true", help="train only")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    rank, device = accelerator.process_index, accelerator.device
    options.out.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():  # the first one to open a cache derives what all others map
        dataset = LatentDataset(options.cache, columns=("key",))
        names = ClassLabels.of(dataset)
    normalize, anything = Normalize.of(dataset), len(names.names)
    dataset = dataset.with_transforms(normalize, names, Drop("label", DROPPED, value=anything))
    sampler = BucketBatchSampler(dataset, options.batch_size, seed=options.seed)  # knows its rank by itself
    loader = LatentLoader(dataset, sampler)

    torch.manual_seed(options.seed)
    net = DiT(dataset.latent_channels, anything, options.width, options.depth)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=0.01)
    checkpoint, step = options.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        step = state["step"]
    model, optimizer = accelerator.prepare(
        net, optimizer
    )  # the loader can be left out: it shares the batches out itself

    def save() -> None:
        if accelerator.is_main_process:
            net = accelerator.unwrap_model(model)
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save({**state, "loader": loader.state_dict()}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)

    with (options.out / f"log-{rank}.jsonl").open("a") as log:
        while step < options.steps:
            for batch in loader:
                random = torch.Generator().manual_seed(hash((options.seed, step, rank)) % 2**63)
                labels = batch["label"].to(device)
                labels = torch.where(labels < 0, anything, labels)  # of samples without one
                loss = flow_loss(model, batch["latents"].to(device), labels, random)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                line = {"step": step, "epoch": sampler.epoch, "loss": loss.item(), "keys": batch["key"]}
                print(json.dumps(line), file=log, flush=True)
                if step % options.save_every == 0 or step == options.steps:
                    save()
                if step % 50 == 0:
                    accelerator.print(f"step {step}: loss {loss.item():.3f}")
                if step == options.steps:
                    break
    if accelerator.is_main_process and not options.no_samples:
        paint(accelerator.unwrap_model(model), dataset, normalize, options.out / "samples.png")
    accelerator.end_training()


def paint(net: DiT, dataset: LatentDataset, normalize: Normalize, path: Path) -> None:
    """Two rows of eight samples in the cache's most frequent bucket, decoded to a picture."""
    buckets = dataset.buckets()
    height, width = max(buckets, key=lambda bucket: sum(map(len, buckets[bucket])))
    ratio, device = dataset.spatial_compression_ratio, net.leave.weight.device
    labels = torch.arange(16, device=device) % max(net.classes, 1)
    shape = (16, dataset.latent_channels, height // ratio, width // ratio)
    latents = normalize.inverse(generate(net.eval(), shape, labels, steps=50, guidance=2.0))
    ae = DCAE(dataset.index["recipe"]["model_source"], device, with_encoder=False)
    pixels = ae.decode(latents / dataset.scaling_factor).clamp(-1, 1)
    grid = pixels.unflatten(0, (2, 8)).permute(0, 3, 1, 4, 2).reshape(2 * height, 8 * width, 3)
    Image.fromarray(((grid + 1) * 127.5).round().to(torch.uint8).cpu().numpy()).save(path)


if __name__ == "__main__":
    main()
