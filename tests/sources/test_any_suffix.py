"""Images of a folder told by their content, where their names don't say."""

from __future__ import annotations

import os
from pathlib import Path

from dcae_cache.records import Part
from dcae_cache.sources import SourceOptions, open_source
from helpers.images import encoded_image


def keys(root: Path, **options: bool) -> list[str]:
    return [entry.key for entry in open_source(str(root), SourceOptions(**options)).entries()]


def test_images_without_a_known_suffix_are_found_by_their_first_bytes(tmp_path: Path) -> None:
    for name in ("0001", "photo.2020", "photo.2021", "IMG.JPG.part", "sub/ab12"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded_image(40, 40))
    (tmp_path / "known.jpg").write_bytes(encoded_image(40, 40))
    (tmp_path / "known.txt").write_text("a caption")
    (tmp_path / "0001.txt").write_text("of the one without")
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "empty").touch()
    (tmp_path / "a photoshop file").write_bytes(b"8BPS\0\1")  # an image, which will be skipped by name
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert keys(tmp_path) == ["known"]
    found = ["0001", "IMG.JPG.part", "a photoshop file", "known", "photo.2020", "photo.2021", "sub/ab12"]
    assert keys(tmp_path, any_suffix=True) == found
    source = open_source(str(tmp_path), SourceOptions(any_suffix=True))
    samples = {ref.key: ref.load() for ref in source.read(Part(0, tuple(source.entries())))}
    assert samples["0001"].caption == "of the one without"
    assert samples["known"].caption == "a caption"


def test_the_option_is_kept_with_the_plan() -> None:
    assert SourceOptions(any_suffix=True).to_json() == {"any_suffix": True}
    assert SourceOptions.from_json({"any_suffix": True}).any_suffix
