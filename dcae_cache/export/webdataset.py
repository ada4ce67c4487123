"""Plain WebDataset tars: latents as .npy or .safetensors, with .json, .txt and .cls beside them.

    00000.tar ...    000000000.json (key, caption, label, sizes, scaling_factor and what else the row says), .txt (the
                     caption), .npy [c, h, w] and .flip.npy (of the mirrored image, where stored), or .safetensors
                     with "latents" and "latents_flip"; .cls (the class number, where there are labels)
    classes.json     label -> class number

Readable with webdataset and energon. Values are scaled, and every JSON says by what.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..compute.devices import TORCH_DTYPES
from ..errors import UsageError
from .exporter import Exporter, write_json
from .labels import number_classes
from .samples import ExportSample
from .tars import add_member, new_tar, npy


class WebDatasetExporter(Exporter):
    """See the module."""

    name = "webdataset"
    values = "scaled"
    dtypes = ("fp32", "fp16", "bf16")
    tensors = ("npy", "safetensors")

    @property
    def with_mirrored(self) -> bool:
        return self.facts.has_flips

    def check(self) -> None:
        if self.options.dtype == "bf16" and self.options.tensor == "npy":
            raise UsageError("An .npy file can't hold bf16: use `tensor` safetensors, or `dtype` fp32 or fp16.")
        _ = self._classes

    def write(self, folder: Path, shard: int, samples: Iterable[ExportSample]) -> dict[str, Any]:
        name, count = f"{shard:05d}.tar", 0
        with new_tar(folder / name) as tar:
            for sample in samples:
                for suffix, data in self._files(sample).items():
                    add_member(tar, f"{sample.number:09d}.{suffix}", data)
                count += 1
        return {"name": name, "num_samples": count}

    def finish(self, folder: Path, shards: Sequence[Mapping[str, Any]]) -> str:
        if self._classes:
            write_json(folder / "classes.json", self._classes)
        pattern = f"{folder.resolve()}/{{00000..{len(shards) - 1:05d}}}.tar"
        opened = "" if self.options.tensor == "npy" else ", then safetensors.torch.load(sample['safetensors'])"
        return (
            f'webdataset.WebDataset("{pattern}", shardshuffle=100).decode(){opened}. Values are scaled by '
            f"{self.facts.scaling_factor:g}, as every json says."
        )

    def _files(self, sample: ExportSample) -> dict[str, bytes]:
        notes = sample.attributes | {
            "key": sample.key,
            **sample.view,
            "caption": sample.caption,
            "label": sample.label,
            "height": sample.height,
            "width": sample.width,
            "bucket_height": sample.bucket.height,
            "bucket_width": sample.bucket.width,
            "model": self.facts.model,
            "scaling_factor": self.facts.scaling_factor,
        }
        files = {"json": json.dumps(notes).encode(), "txt": (sample.caption or "").encode()}
        files |= self._tensors(sample)
        if sample.label is not None:
            files["cls"] = str(self._classes[sample.label]).encode()
        return files

    def _tensors(self, sample: ExportSample) -> dict[str, bytes]:
        latents = self._stored(sample.latents)
        mirrored = None if sample.mirrored is None else self._stored(sample.mirrored)
        if self.options.tensor == "npy":
            return {"npy": npy(latents)} | ({} if mirrored is None else {"flip.npy": npy(mirrored)})
        both = {"latents": latents} | ({} if mirrored is None else {"latents_flip": mirrored})
        return {"safetensors": save(both)}

    def _stored(self, latents: Tensor) -> Tensor:
        return latents.to(TORCH_DTYPES[self.options.dtype]).contiguous()

    @cached_property
    def _classes(self) -> dict[str, int]:
        return dict(sorted(number_classes(self.facts, self.name).items(), key=lambda item: item[1]))
