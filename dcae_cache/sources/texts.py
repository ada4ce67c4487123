"""Bytes of captions to text, where that is sure; else the bytes are kept for later. Knows nothing of files or tars."""

from __future__ import annotations

import base64
import codecs

from ..errors import UsageError

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, encoding: str | None = None) -> str | None:
    """The text, or None where its encoding isn't sure: it has no byte order mark, is no UTF-8, and isn't ``encoding``
    either.

    Valid UTF-8 counts as sure (text in another encoding practically never is), unless it holds NUL: that is UTF-16
    without a mark. A mark goes before ``encoding``, and so does UTF-8 unless ``encoding`` is of 16 or 32 bits.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _try(data, name)
    is_wide = encoding is not None and codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    order = (encoding, "utf-8") if is_wide else ("utf-8", encoding)
    return next((text for name in order if name and (text := _try(data, name)) is not None), None)


def kept_bytes(data: bytes) -> str:
    """The bytes as text that JSON can hold."""
    return base64.b64encode(data).decode()


def check_encoding(encoding: str) -> None:
    """Raise UsageError for a name that isn't one of an encoding of text."""
    try:
        b"x".decode(encoding, "replace")
    except LookupError as error:
        raise UsageError(
            f"`caption_encoding`: there is no encoding {encoding!r}; expected one such as cp1252, gb18030 or utf-16."
        ) from error


def _try(data: bytes, encoding: str) -> str | None:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text
