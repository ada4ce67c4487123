"""An S3 of one's own on loopback: moto's server, with one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest

BUCKET = "caches"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment that leads to it. Skips the test where s3fs or moto is missing."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs and moto, of the dev extra")
    moto = pytest.importorskip("moto.server", reason="needs s3fs and moto, of the dev extra")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "very-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()  # what another test left
            s3fs.S3FileSystem().mkdir(BUCKET)
            yield environment
            s3fs.S3FileSystem.clear_instance_cache()
    finally:
        server.stop()


def objects(folder: str) -> dict[str, bytes]:
    """Every object below a folder of the bucket, by its name there."""
    import s3fs

    bucket: Any = s3fs.S3FileSystem(use_listings_cache=False)
    bucket.invalidate_cache()
    root = f"{BUCKET}/{folder}/"
    return {path.removeprefix(root): bucket.cat_file(path) for path in bucket.find(root)}
