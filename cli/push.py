"""``dcae-cache push``: a cache to the hub, as a data set."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dcae_cache.text import human_bytes

from .options import AsJson, CacheDir, CacheFolder, Device, MovedModel, Token
from .output import resumable, say, show, show_json

Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The data set on the hub.")]


def push(
    cache: CacheFolder,
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="Make a new data set visible to you alone.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if it isn't there.")] = None,
    anonymous: Annotated[
        bool,
        typer.Option("--anonymous/--with-paths", help="Leave out the folders of this machine, or keep them."),
    ] = True,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show a few decoded samples on the card.")
    ] = True,
    license: Annotated[str | None, typer.Option(help="Of the images, as the hub names it: cc-by-4.0, ...")] = None,
    model: MovedModel = None,
    device: Device = "auto",
    cache_dir: CacheDir = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Upload a finished cache, with a card that says what it is. Run it again to resume it or to add what is new.

    dcae-cache push latents owner/photos-latents --private
    """
    from dcae_cache.models.options import HubOptions
    from dcae_cache.share.push import PushOptions, push_cache

    options = PushOptions(
        private=private,
        revision=revision,
        anonymous=anonymous,
        pictures=pictures,
        license=license,
        model=model,
        device=device,
        hub=HubOptions(cache_dir=cache_dir, token=token),
    )
    with resumable("parts", "pushing", "files") as progress:
        pushed = push_cache(cache, repo, options, progress, say)
    if as_json:
        show_json(asdict(pushed))
        return
    say(
        f"Sent {pushed.sent_files} of {pushed.num_files} files, {human_bytes(pushed.sent_bytes)} of "
        f"{human_bytes(pushed.num_bytes)}; the others were there."
    )
    show(pushed.url)
