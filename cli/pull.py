"""``dcae-cache pull``: a cache from the hub to a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dcae_cache.text import counted, human_bytes

from .options import AsJson, Token
from .output import resumable, show, show_json
from .push import Repo


def pull(
    repo: Repo,
    out: Annotated[Path, typer.Option(help="A new folder, or one that was pulled from there before.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Download a cache and check every hash. Run it again to resume it or to bring the folder up to date.

    Training needs no copy: LatentDataset reads hf://datasets/OWNER/NAME as it goes.

        dcae-cache pull owner/photos-latents --out latents
    """
    from dcae_cache.share.pull import pull_cache

    with resumable("parts", "checking", "files") as progress:
        pulled = pull_cache(repo, out, revision=revision, token=token, progress=progress)
    if as_json:
        show_json(asdict(pulled))
        return
    show(
        f"{pulled.out} holds {counted(pulled.num_samples, 'latent')} in {counted(pulled.num_parts, 'part')}, "
        f"{human_bytes(pulled.num_bytes)}, as of commit {pulled.commit}; every hash is right."
    )
