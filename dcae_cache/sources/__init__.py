"""Where images come from. ``open_source`` picks the kind of source by what the URI looks like.

Importing this loads no library: what opens a source (opening.py) is loaded when one is opened.
"""

from __future__ import annotations

from .base import ListedSource, Source, SourceOptions, refuse_options_without_effect

__all__ = ["ListedSource", "Source", "SourceOptions", "open_source", "refuse_options_without_effect"]


def open_source(uri: str, options: SourceOptions | None = None) -> ListedSource:
    """A source for ``uri``, of the kind its look tells.

    Raises SourceError when nothing of a known kind is there. The libraries of a kind are imported only for it.
    """
    from .opening import open_source

    return open_source(uri, options)
