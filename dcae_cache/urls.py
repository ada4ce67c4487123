"""URLs and commands without what is secret in them: passwords, tokens and signatures.

``without_secrets`` is the one function for it: whatever names a place in a file of a cache, in a report or in a
message has gone through it. What it gives also tells places apart: the same file, signed anew, keeps its name. Knows
nothing of how anything is fetched.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>\\|`]+")
# "user:password@", also where the password has a slash in it, which browsers would not take; a port is none.
_USER = re.compile(r"(?i)([a-z0-9+.-]+)(://)(?:([^\s/?#@:]*):(?!\d+(?:[/?#]|$))[^\s@]*(?:@[^\s/?#@]*)*@|[^\s/?#@]*@)")
_LOGINS = ("http", "https", "ftp", "ftps")  # elsewhere the name before the @ is part of the place: abfs://box@account
_SECRET = re.compile(
    r"(?i)token|secret|passw|signature|credential|(api|access)[-_]?key|accessid|^x-(amz|goog|oss|cos|ms|xet)-"
    r"|^(sig|sign|auth|authorization|jwt|hmac|pwd|hm|hdnts|hdnea|key-pair-id)$"
)
# Parts of a signature that mean something else where nothing is signed: AWS 2, CloudFront, Azure, Discord.
_BESIDE_A_SECRET = frozenset(
    [
        "expires",
        "expiry",
        "policy",
        "sv",
        "se",
        "st",
        "sr",
        "sp",
        "spr",
        "sip",
        "ss",
        "srt",
        "sks",
        "skt",
        "ske",
        "skv",
        "skoid",
        "sktid",
        "scid",
        "saoid",
        "suoid",
        "ex",
        "is",
    ]
)
_CHAINED = re.compile(r"(::)(?=[A-Za-z][A-Za-z0-9+.-]*://)")  # fsspec's zip://a.jpg::https://...
_SEPARATOR = re.compile(r"([?&;#])")
_PIPE = "pipe:"
_MASKS = (
    (re.compile(r"(?i)\b((?:proxy-)?authorization\s*[:=]\s*)(?:(?:bearer|basic|token)\s+)?[^\s\"']+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer\s+)[^\s\"']+"), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
)
_COMMAND_MASKS = (
    (re.compile(r"(?i)((?:^|\s)(?:-u|--user|--proxy-user)[\s=]+[\"']?[^\s:\"']*:)[^\s\"']+"), r"\1***"),
    (
        re.compile(r"(?i)([\w-]*(?:token|secret|passw|api[-_]?key|access[-_]?key)[\w-]*[\"']?\s*[=:]\s*)[^\s\"'&;]+"),
        r"\1***",
    ),
)


def is_url(text: str) -> bool:
    """True for scheme://rest, False for a path."""
    return _SCHEME.match(text) is not None


def without_secrets(text: str) -> str:
    """A URL, a ``pipe:`` command or any text with such in it, less passwords, tokens and signatures.

    Of a URL its user and the secret arguments are left out, of a command they are replaced by ``***``. Text without
    any comes back as it is.
    """
    if "://" in text:
        text = _URL.sub(lambda match: "".join(map(_cleaned, _CHAINED.split(match[0]))), text)
    for pattern, mask in _MASKS if any(word in text for word in ("earer", "uthorization", "EARER", "hf_")) else ():
        text = pattern.sub(mask, text)
    start = text.find(_PIPE)
    if start >= 0:
        command = text[start:]
        for pattern, mask in _COMMAND_MASKS:
            command = pattern.sub(mask, command)
        text = text[:start] + command
    return text


def _cleaned(url: str) -> str:
    url = _USER.sub(_without_user, url)
    base, *rest = _SEPARATOR.split(url)
    arguments = list(zip(rest[::2], rest[1::2], strict=True))
    names = [unquote(argument.partition("=")[0]).lower() for _, argument in arguments]
    is_signed = any(_SECRET.search(name) for name in names)
    kept, opening = [base], ""
    for (separator, argument), name in zip(arguments, names, strict=True):
        if separator in "?#":
            opening = separator
        if _SECRET.search(name) or (is_signed and (not name or name in _BESIDE_A_SECRET)):
            continue
        kept.append((opening or separator) + _within(argument))
        opening = ""
    return "".join(kept)


def _without_user(match: re.Match[str]) -> str:
    scheme, mark, name = match[1], match[2], match[3]
    if scheme.lower() in _LOGINS:
        return scheme + mark
    return match[0] if name is None else f"{scheme}{mark}{name}@"


def _within(argument: str) -> str:
    """An argument whose value is a URL itself, percent-encoded."""
    name, mark, value = argument.partition("=")
    inner = unquote(value)
    cleaned = without_secrets(inner) if "://" in inner and inner != value else inner
    return argument if cleaned == inner else f"{name}{mark}{quote(cleaned, safe='')}"
