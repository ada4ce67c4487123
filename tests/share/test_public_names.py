"""What files are called in a pushed cache: no folder of their maker, and no two the same."""

from __future__ import annotations

import pytest

from dcae_cache.share.public_copy import Names

HOME = "/home/jane"


@pytest.mark.parametrize(
    ("uri", "places", "expected"),
    [
        (f"{HOME}/t/{{0..1}}.tar", [f"{HOME}/t/0.tar", f"{HOME}/t/1.tar"], ["0.tar", "1.tar"]),
        (f"{HOME}/t/**/*.tar", [f"{HOME}/t/a/0.tar", f"{HOME}/t/b/0.tar"], ["a/0.tar", "b/0.tar"]),
        (f"{HOME}/t/{{a,b}}/0.tar", [f"{HOME}/t/a/0.tar", f"{HOME}/t/b/0.tar"], ["a/0.tar", "b/0.tar"]),
        (f"{HOME}/l/x.txt", [f"{HOME}/l/../a/0.tar", "/mnt/b/0.tar", "/mnt/1.tar"], ["a/0.tar", "b/0.tar", "1.tar"]),
        (f"{HOME}/l/x.txt", ["/a/x/0.tar", "/b/x/0.tar", "/c/y/0.tar"], ["a/x/0.tar", "b/x/0.tar", "c/y/0.tar"]),
        (f"{HOME}/l/x.txt", ["/x/0.tar", "/b/x/0.tar", f"{HOME}/l/x/1.tar"], ["x/0.tar", "b/x/0.tar", "x/1.tar"]),
        (f"{HOME}/l/x.txt", ["s3://b/0.tar", "https://h/0.tar?token=x"], ["s3://b/0.tar", "https://h/0.tar"]),
    ],
)
def test_files_keep_as_many_folders_as_tell_them_apart(uri: str, places: list[str], expected: list[str]) -> None:
    found = Names.of(uri).of_files(places)
    assert [found[place] for place in places] == expected
    assert not any("jane" in name for name in found.values())


@pytest.mark.parametrize(
    ("uri", "home"),
    [
        (f"{HOME}/photos", HOME),
        (f"{HOME}/t/x.txt", f"{HOME}/t"),
        (f"{HOME}/t/0?/*.tar", f"{HOME}/t"),
        ("s3://b/x", ""),
        ("pipe:cat x", ""),
    ],
)
def test_what_holds_the_source(uri: str, home: str) -> None:
    assert Names.of(uri) == Names(home)
