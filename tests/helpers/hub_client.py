"""Run by test_hub.py in a process of its own, since the hub's client reads its environment once, when imported.

One JSON request per line on stdin (the arguments of ``resolve``), one JSON answer per line on stdout.
"""

from __future__ import annotations

import json
import sys
import time

import huggingface_hub.constants
import torch

from dcae_cache.errors import ModelError
from dcae_cache.models import zoo
from dcae_cache.models.hub import resolve
from dcae_cache.models.options import HubOptions
from dcae_cache.models.weights import load_half
from helpers.golden import load


def answer(arguments: dict) -> dict:
    load_it = arguments.pop("load", False)
    try:
        found = resolve(arguments.pop("model"), revision=arguments.pop("revision", None), hub=HubOptions(**arguments))
        half = load_half(found.weights, found.spec, found.layout, "encoder", torch.float32) if load_it else None
    except ModelError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "name": found.name,
        "repo_id": found.repo_id,
        "revision": found.revision,
        "layout": found.layout,
        "scaling_factor": found.scaling_factor,
        "weights": str(found.weights),
        "sha256": half and half.sha256,
    }


def main() -> None:
    spec = load("f32").spec
    extra = [
        zoo.ModelEntry("narrow", "dc-ae-narrow-1.0", spec, 0.5, ("owner/narrow",), ("owner/narrow-diffusers",)),
        zoo.ModelEntry("moved", "dc-ae-moved-1.0", spec, 0.5, ("gone/moved",), ("owner/narrow-diffusers",)),
        zoo.ModelEntry("lost", "dc-ae-lost-1.0", spec, 0.5, ("gone/lost",), ("gone/lost-diffusers",)),
        zoo.ModelEntry("other", "dc-ae-other-1.0", load("f32-sana").spec, 0.5, (), ("owner/narrow-diffusers",)),
    ]
    known = (*zoo.entries(), *extra)
    zoo.entries = lambda: known
    time.sleep = lambda seconds: None  # the hub's client waits between attempts
    huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 4096  # and keeps whole chunks only: 10 MB by default
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
