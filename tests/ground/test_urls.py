"""What is secret in an address is left out, and nothing else is."""

from __future__ import annotations

import json

import pytest

from dcae_cache.errors import SampleSkipped, SourceError, one_line
from dcae_cache.urls import is_url, without_secrets

SECRETS = ("hunter2", "S3CRET")


@pytest.mark.parametrize(
    ("url", "rest"),
    [
        ("https://user:hunter2@host/a.tar", "https://host/a.tar"),
        ("https://hunter2@host:8443/a.tar", "https://host:8443/a.tar"),
        ("https://user:hun/ter@hunter2@host/a.tar", "https://host/a.tar"),
        ("ftp://user:hunter2@host/a@2x.tar", "ftp://host/a@2x.tar"),
        ("sftp://user:hunter2@host/a.tar", "sftp://user@host/a.tar"),
        ("https://b.s3.amazonaws.com/a.tar?X-Amz-Date=1&X-Amz-Signature=S3CRET", "https://b.s3.amazonaws.com/a.tar"),
        ("https://h/a?versionId=3&X-Amz-Security-Token=S3CRET&part=2", "https://h/a?versionId=3&part=2"),
        ("https://h/a?AWSAccessKeyId=x&Signature=S3CRET&Expires=17", "https://h/a"),
        ("https://a.blob.core.windows.net/c/a.tar?sv=22&se=9&sr=b&sp=r&sig=S3CRET%3D", "https://a.blob.core.windows.net/c/a.tar"),
        ("https://h/a?X-Goog-Signature=S3CRET&alt=media", "https://h/a?alt=media"),
        ("https://h/a?Policy=p&Key-Pair-Id=k&Signature=S3CRET&w=1", "https://h/a?w=1"),
        ("https://cdn/a.jpg?ex=6&is=7&hm=S3CRET&", "https://cdn/a.jpg"),
        ("https://h/a.jpg?w=3&access_token=S3CRET#top", "https://h/a.jpg?w=3#top"),
        ("https://h/a.jpg?X%2DAmz%2DSignature=S3CRET&w=3", "https://h/a.jpg?w=3"),
        ("https://h/a#access_token=S3CRET", "https://h/a"),
        ("zip://a.jpg::https://user:hunter2@host/x.zip?sig=S3CRET", "zip://a.jpg::https://host/x.zip"),
        ("https://h/get?url=https%3A%2F%2Fu%3Ahunter2%40i%2Fy%3Fsig%3DS3CRET", "https://h/get?url=https%3A%2F%2Fi%2Fy"),
        ("https://h/{000..099}.tar?token=S3CRET", "https://h/{000..099}.tar"),
        ("pipe:curl -u me:hunter2 https://a:hunter2@h/x?sig=S3CRET", "pipe:curl -u me:*** https://h/x"),
        ("pipe:AWS_SECRET_ACCESS_KEY=S3CRET aws s3 cp s3://b/x", "pipe:AWS_SECRET_ACCESS_KEY=*** aws s3 cp s3://b/x"),
        ("pipe:curl -H 'Authorization: Bearer S3CRET' https://h/x", "pipe:curl -H 'Authorization: ***' https://h/x"),
    ],
)  # fmt: skip
def test_secrets_are_left_out(url: str, rest: str) -> None:
    assert without_secrets(url) == rest
    assert without_secrets(rest) == rest, "what is left stays"


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b.tar?x=1&y=a%20b#z",
        "https://h/get?key=a.tar&id=7&expires=never",
        "abfs://container@account.dfs.core.windows.net/a.tar?sv=1",
        "hf://datasets/owner/name@main/a.tar",
        "s3://bucket/path/a.tar",
        "data/{000..099}.tar",
        "/home/me/token=3/a.jpg",
        "a caption that says token: three, and password=none",
        "",
    ],
)
def test_the_rest_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def test_the_same_file_signed_anew_has_the_same_name() -> None:
    first, second = (f"https://h/a.tar?X-Amz-Date={day}&X-Amz-Signature={day * 9}&v=1" for day in ("1", "2"))
    assert without_secrets(first) == without_secrets(second)


def test_text_with_addresses_in_it() -> None:
    line = json.dumps({"url": "https://h/a.jpg?token=S3CRET&w=3", "also": ["https://me:hunter2@h/b", 3]})
    assert json.loads(without_secrets(line)) == {"url": "https://h/a.jpg?w=3", "also": ["https://h/b", 3]}


def test_no_error_carries_a_secret() -> None:
    url = "https://me:hunter2@h/a.tar?sig=S3CRET"
    skip = SampleSkipped("unreadable", f"Can't read {url}")
    said = [str(SourceError(f"Can't read {url}.")), str(skip), skip.detail, one_line(OSError(f"no {url}"))]
    assert not [text for text in said if any(secret in text for secret in SECRETS)]
    assert all("https://h/a.tar" in text for text in said)


def test_what_is_a_url() -> None:
    assert is_url("s3://b/x")
    assert is_url("a+b.c-d://x")
    assert not is_url("C:/x")
    assert not is_url("pipe:cat x")
