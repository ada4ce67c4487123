"""``dcae-cache encode``: flags to one EncodeConfig and one RunOptions, and a progress bar."""

from __future__ import annotations

import gc
import sys
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcae_cache.config import DEFAULT_MAX_PIXELS, CropChoice, EncodeConfig, RunOptions
from dcae_cache.errors import StrictError, UsageError
from dcae_cache.images.buckets import BucketKind
from dcae_cache.ledger import Ledger
from dcae_cache.records import DtypeName, Kernels
from dcae_cache.remote import DEFAULT_USER_AGENT
from dcae_cache.sources.base import DEFAULT_MAX_BYTES, DEFAULT_TIMEOUT, SourceOptions
from dcae_cache.text import whole_number

from .encode_output import show_plan, show_summary
from .exit_codes import EXIT_INTERRUPTED
from .flags import Command
from .options import AsJson, CacheDir, Device, MaxBytes, Offline, Token, number_or
from .output import ProgressBar, say, show_json

if TYPE_CHECKING:
    pass

_ANY_RESOLUTION = 512  # where sizes are listed, it has no say


class EncodeCommand(Command):
    """With forty options, help needs headings."""

    headings = MappingProxyType({"model": "What is stored", "limit": "What is read", "batch_size": "How it runs"})


def encode(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder, tars, a table or a dataset; see docs/sources.md.")
    ],
    out: Annotated[
        str,
        typer.Option(help="The cache: a folder, new or to go on with, or the URL of one (s3://...)."),
    ],
    # What is stored
    model: Annotated[str, typer.Option(help="Name (see `dcae-cache models`), hub repo or folder.")] = "f32c32-mix",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub repo.")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Where in the repo or folder the model lies.")] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="fp16|...", help="Of the weights' files, as diffusers names them.")
    ] = None,
    latent_channels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first channels; DC-AE 1.5 models are made for it.")
    ] = None,
    scaling_factor: Annotated[
        float | None, typer.Option(min=0, help="Instead of the model's own; needed where none is published.")
    ] = None,
    resolution: Annotated[
        str,
        typer.Option(
            metavar="N,N,...|HxW",
            help="Side of the square whose area buckets keep; several: images at each of them. Or one size; pixels.",
        ),
    ] = "512",
    bucket: Annotated[BucketKind, typer.Option(help="How sizes are chosen; see docs/buckets.md.")] = "area",
    crop: Annotated[
        CropChoice, typer.Option(help="adm: the ADM centre crop (with --bucket square); random: --crops 1.")
    ] = "center",
    crops: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Store so many crops of each image, anywhere in it.")
    ] = None,
    crop_seed: Annotated[int, typer.Option(help="What places of --crops follow from, with the key.")] = 0,
    max_aspect: Annotated[float, typer.Option(min=1, help="Longest side over shortest, --bucket area.")] = 4.0,
    max_upscale: Annotated[
        float | None, typer.Option(min=1, help="Skip images that would grow by more than this factor.")
    ] = None,
    buckets: Annotated[
        str | None, typer.Option(metavar="HxW,HxW,...", help="These sizes and no others, pixels.")
    ] = None,
    bucket_step: Annotated[
        int | None,
        typer.Option(min=1, help="What sides are multiples of, pixels; area: by factor and resolution, kohya: 64."),
    ] = None,
    bucket_min: Annotated[int, typer.Option(min=1, help="--bucket kohya: shortest side, pixels.")] = 256,
    bucket_max: Annotated[int, typer.Option(min=1, help="--bucket kohya: longest side, pixels.")] = 1024,
    dtype: Annotated[DtypeName, typer.Option(help="Of the stored latents.")] = "bf16",
    compute_dtype: Annotated[
        DtypeName | None, typer.Option(help="Of the network; the stored one unless given.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Also store the latents of the mirrored images.")] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Skip images larger than this (decompression bombs).")
    ] = DEFAULT_MAX_PIXELS,
    # What is read
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many samples.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hugging Face dataset.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a Hugging Face dataset file by file, without a local copy.")
    ] = False,
    any_suffix: Annotated[
        bool, typer.Option("--any-suffix", help="Find the images of a folder by their content, whatever their names.")
    ] = False,
    image_column: Annotated[str | None, typer.Option(help="Field that holds the image, its path or URL.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Field that holds the caption.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Field that holds the label.")] = None,
    caption_extension: Annotated[
        str | None, typer.Option(metavar="EXT", help="Of files with captions; .txt, .caption and .tags unless given.")
    ] = None,
    caption_lines: Annotated[
        bool, typer.Option("--caption-lines", help="Each line of a file with captions is a caption of its own.")
    ] = False,
    caption_encoding: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of captions and tables that aren't UTF-8: cp1252, gb18030, ...")
    ] = None,
    key: Annotated[
        Literal["shard"] | None, typer.Option(help="shard: put the tar's name before keys that are unique in it only.")
    ] = None,
    key_split: Annotated[
        Literal["first", "last"] | None,
        typer.Option(help="The dot that ends a tar member's key; found out unless given."),
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="Between cells of a CSV; found out unless given.")] = None,
    table: Annotated[str | None, typer.Option(help="The table in a folder SOURCE that names its images.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Drop the latents of what is no longer in SOURCE.")] = False,
    refresh_metadata: Annotated[
        bool, typer.Option("--refresh-metadata", help="Read captions, labels and attributes of finished parts again.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Check every part's hashes, make broken ones anew, and --recheck."),
    ] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Read all source images and make anew what changed without a sign.")
    ] = False,
    retry_skipped: Annotated[bool, typer.Option("--retry-skipped", help="Try skipped samples again.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete a cache of another recipe first; asks unless --yes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before --overwrite deletes.")] = False,
    allow_pipe: Annotated[bool, typer.Option("--allow-pipe", help="Run the shell commands of pipe: sources.")] = False,
    max_bytes: MaxBytes = DEFAULT_MAX_BYTES,
    url_timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="For the whole of one URL, however often it is tried.")
    ] = DEFAULT_TIMEOUT,
    user_agent: Annotated[str, typer.Option(help="What servers of URLs are told.")] = DEFAULT_USER_AGENT,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Exit with 0 though input tars break off.")
    ] = False,
    # How
    batch_size: Annotated[str, typer.Option(metavar="N|auto", help="Images per batch.")] = "auto",
    device: Device = "auto",
    kernels: Annotated[
        Kernels, typer.Option(help="auto: own GPU kernels where they run, else plain torch; eager: plain torch.")
    ] = "auto",
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; one per visible GPU unless given.")
    ] = None,
    part_range: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every N-th part, from I (0 to N-1): for job arrays.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Decoders on this machine; one per core unless given.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a trace of the run's threads and device, for Perfetto.")
    ] = None,
    part_size: Annotated[int, typer.Option(min=1, help="Samples per part: the unit of commit and resume.")] = 1024,
    scratch: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where a cache for an object store is written before it is sent.")
    ] = None,
    max_skip_rate: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with 1 if a larger share was skipped.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if anything was left out, unmatched or merged.")
    ] = False,
    cache_dir: CacheDir = None,
    token: Token = None,
    offline: Offline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, encode nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Encode the images of SOURCE into a cache of latents.

    Run the same command again to resume it, or to add what is new in SOURCE.

        dcae-cache encode ./images --model f32c32-mix --out latents

        dcae-cache encode ./images --out latents --dry-run

        dcae-cache encode 'data/{000..099}.tar' --bucket sana-1024 --out latents

        dcae-cache encode hf:owner/name --split train --out latents

        dcae-cache encode urls.parquet --max-skip-rate 0.1 --out latents
    """
    resolutions = _resolutions(resolution)
    resolution_side, sizes = _sizes(str(max(resolutions)) if resolutions else resolution, buckets, bucket)
    config = EncodeConfig(
        model=model,
        revision=revision,
        subfolder=subfolder,
        variant=variant,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        resolution=resolution_side,
        resolutions=resolutions,
        bucket="list" if sizes and bucket == "square" else bucket,
        buckets=sizes,
        crop=crop,
        crops=crops or 0,
        crop_seed=crop_seed,
        max_aspect=max_aspect,
        max_upscale=max_upscale,
        bucket_step=bucket_step,
        bucket_min=bucket_min,
        bucket_max=bucket_max,
        dtype=dtype,
        compute_dtype=compute_dtype,
        flip=flip,
        max_pixels=max_pixels,
    )
    options = RunOptions(
        batch_size=_batch_size(batch_size),
        device=device,
        kernels=kernels,
        num_processes=num_processes,
        part_range=_part_range(part_range),
        workers=workers,
        profile=profile,
        part_size=part_size,
        limit=limit,
        max_skip_rate=max_skip_rate,
        scratch=scratch,
        prune=prune,
        refresh_metadata=refresh_metadata,
        repair=repair,
        recheck=recheck,
        strict=strict,
        retry_skipped=retry_skipped,
        overwrite=overwrite and _may_delete(out, yes),
        allow_damaged=allow_damaged,
        offline=offline,
        cache_dir=cache_dir,
        token=token,
    )
    reading = SourceOptions(
        image_column=image_column,
        caption_column=caption_column,
        label_column=label_column,
        split=split,
        streaming=streaming,
        allow_pipe=allow_pipe,
        any_suffix=any_suffix,
        caption_extension=caption_extension,
        caption_lines=caption_lines,
        caption_encoding=caption_encoding,
        key=key,
        key_split=key_split,
        delimiter=delimiter,
        table=table,
        max_bytes=max_bytes,
        url_timeout=url_timeout,
        user_agent=user_agent,
    )
    if dry_run:
        _show_preview(source, config, options, reading, as_json)
    else:
        _run(source, out, config, options, reading, as_json)


def _may_delete(out: str, yes: bool) -> bool:
    """Whether --overwrite may delete latents. Asks a person; a script must say --yes."""
    if yes or not ("://" in out or Path(out).exists()):
        return True
    if not sys.stdin.isatty():
        raise UsageError("--overwrite deletes latents. Pass --yes where nobody can be asked.")
    return typer.confirm(f"Delete the latents in {out}, should they be of another recipe?", err=True)


def _resolutions(text: str) -> tuple[int, ...]:
    """The numbers of --resolution where it lists several, else none."""
    sides = [whole_number(side.strip()) for side in text.split(",")] if "," in text else []
    return tuple(side for side in sides if side) if all(sides) else ()


def _sizes(resolution: str, buckets: str | None, bucket: BucketKind) -> tuple[int, tuple[str, ...]]:
    """--resolution as a side in pixels, and the sizes that --buckets lists, or the one that --resolution names."""
    side = whole_number(resolution)
    if side:
        return side, () if buckets is None else tuple(buckets.split(","))
    if buckets is not None or "x" not in resolution.lower() or "," in resolution or bucket not in ("area", "square"):
        raise UsageError(
            f"--resolution is a number of pixels, several (256,512), or one size HEIGHTxWIDTH with --bucket square, "
            f"not {resolution!r}. For several sizes: --buckets 512x288,288x512."
        )
    return _ANY_RESOLUTION, (resolution,)


def _batch_size(text: str) -> int | None:
    return number_or("auto", text, "`batch_size` is a number of images or auto")


def _part_range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, count = text.partition("/")
    part_range = whole_number(number), whole_number(count)
    if part_range[0] is None or part_range[1] is None:
        raise UsageError(f"`part_range` is I/N, such as 0/16 for the first of 16 jobs, not {text!r}.")
    return part_range[0], part_range[1]


def _run(
    source: str, out: str, config: EncodeConfig, options: RunOptions, reading: SourceOptions, as_json: bool
) -> None:
    from dcae_cache.encode.distributed import find_rank
    from dcae_cache.encode.pipeline import encode_dataset

    gc.freeze()  # what was imported stays: looking through it time and again took a fifth of the listing of a million
    own = find_rank()
    leads = own is None or own.leads  # of a launcher's processes one speaks for all
    bar = ProgressBar("latents" if config.resolutions or config.crops else "images")
    try:
        summary = encode_dataset(
            source,
            out,
            config,
            options,
            source_options=reading,
            progress=lambda progress: bar.update(progress.done, progress.total, progress.skipped),
            notify=say,
        )
    except KeyboardInterrupt:
        bar.close()
        if leads:
            say("Interrupted. Finished parts are kept: run the same command again to go on.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        bar.close()
    if not leads:
        return
    if as_json:
        show_json({**asdict(summary), "images_per_second": summary.images_per_second})
    else:
        show_summary(summary)


def _show_preview(
    source: str, config: EncodeConfig, options: RunOptions, reading: SourceOptions, as_json: bool
) -> None:
    from dcae_cache.encode.preview import preview_dataset

    gc.freeze()  # as for a run
    bar = ProgressBar("headers")
    try:
        preview = preview_dataset(source, config, options, reading, bar.update)
    finally:
        bar.close()
    if as_json:
        show_json(asdict(preview))
    else:
        show_plan(preview)
    if options.strict and (faults := Ledger.from_json(preview.ledger).faults()):
        raise StrictError(f"--strict was given, and there are {'; '.join(faults)}. Nothing was written.")
