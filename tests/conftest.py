"""What all tests share: one thread for each sum, 20 photos, and a cache of them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

# What a person has named is remembered in their home; the tests have one of their own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="dcae-cache-state-")
# Before torch is imported, here and in the processes the tests start: the number of threads changes the last bits of a
# latent, and small networks are fastest with one.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from helpers.images import encode, make_folder

settings.register_profile("dcae-cache", deadline=None)  # a busy machine makes no test wrong
settings.load_profile("dcae-cache")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 images. Read only: tests that change it make their own."""
    return make_folder(tmp_path_factory.mktemp("photos"), 20)


@pytest.fixture(scope="session")
def cache(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those images encoded. Read only."""
    out = tmp_path_factory.mktemp("caches") / "latents"
    encode(photos, out)
    return out
