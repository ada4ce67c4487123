"""Read a cache in training batches: python examples/read_latents.py CACHE"""

import sys

from torch.utils.data import DataLoader

from dcae_cache import BucketBatchSampler, LatentDataset

dataset = LatentDataset(sys.argv[1])
loader = DataLoader(dataset, batch_sampler=BucketBatchSampler(dataset, batch_size=4))
for batch in loader:
    latents = batch["latents"]  # [N, c, h, w], scaled: ready for the diffusion model
    print(tuple(latents.shape), f"std {latents.float().std():.2f}", batch["key"])
