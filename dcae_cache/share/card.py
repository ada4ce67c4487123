"""The page that a data set on the hub opens with: what the latents are, how they were made, how to read them.

Everything on it comes from the index; what nobody stated is left for its owner to fill in. Knows nothing of the hub's
client.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..text import counted, human_bytes

CARD_NAME, PICTURE_NAME = "README.md", "samples.jpg"
_UNKNOWN = "[More information needed]"
_MARK = re.compile(r"\n<!-- made by dcae-cache; unedited: ([0-9a-f]{64}) -->\n$")
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_LARGEST = "n>10M"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What the index doesn't say. ``why_no_picture`` is None where there is a picture."""

    repo_id: str
    url: str  # as readers call it
    license: str | None
    why_no_picture: str | None


def make_card(index: Mapping[str, Any], facts: CardFacts) -> str:
    """The card, with the front matter that has the hub's viewer show the tables."""
    text = "\n".join([_front_matter(index, facts), *_body(index, facts)])
    return f"{text}\n<!-- made by dcae-cache; unedited: {_digest(text)} -->\n"


def is_unedited(card: str) -> bool:
    """Whether the card is just as ``make_card`` made it once."""
    mark = _MARK.search(card)
    return mark is not None and mark.group(1) == _digest(card[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _front_matter(index: Mapping[str, Any], facts: CardFacts) -> str:
    """YAML, each value written as JSON, which YAML includes."""
    count = index["totals"]["num_samples"]
    values = {
        "pretty_name": f"{facts.repo_id.partition('/')[2]} ({index['model']['name']} latents)",
        **({"license": facts.license} if facts.license else {}),
        "tags": ["latents", "dc-ae", "dcae-cache", "text-to-image"],
        "size_categories": [next((name for limit, name in _SIZES if count < limit), _LARGEST)],
        "configs": [{"config_name": "samples", "data_files": [{"split": "train", "path": "parts/*.parquet"}]}],
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _body(index: Mapping[str, Any], facts: CardFacts) -> list[str]:
    latent, totals, model = index["latent"], index["totals"], index["model"]
    picture = (
        [f"![Decoded samples]({PICTURE_NAME})", "", "A few samples, decoded from the latents stored here."]
        if facts.why_no_picture is None
        else [f"No samples are shown: {facts.why_no_picture}."]
    )
    where = f"`{model['repo_id']}` at `{model['revision']}`" if model["repo_id"] else "a local checkpoint"
    return [
        "",
        f"# {facts.repo_id.partition('/')[2]}",
        "",
        f"{counted(totals['num_samples'], 'image')} as latents of the autoencoder `{model['name']}` ({where}), "
        f"{human_bytes(totals['num_bytes'])} in {counted(totals['num_parts'], 'part')}, made with {index['creator']}.",
        "",
        *picture,
        "",
        "## Reading it",
        "",
        "```python",
        "from dcae_cache import LatentDataset",
        "",
        f'dataset = LatentDataset("{facts.url}")',
        'sample = dataset[0]  # "latents" [c, h, w], "key", "caption", ...',
        "```",
        "",
        f"Or as a copy on disk: `dcae-cache pull {facts.repo_id} --out latents`. Captions, labels and sizes are in "
        "`parts/*.parquet`, which the viewer shows; latents are in the safetensors file of the same name.",
        "",
        "## What is stored",
        "",
        *_table(
            ("", ""),
            [
                ("latents", f"{latent['channels']} channels at 1/{latent['spatial_compression_ratio']}"),
                ("dtype", latent["dtype"]),
                ("values", f"scaled: raw latents x {latent['scaling_factor']}; divide by it before decoding"),
                ("mirrored images", "yes, beside the plain ones" if index["recipe"]["flip"] else "no"),
                ("encoder's weights, sha256", f"`{model['weights_sha256']}`"),
                ("recipe's fingerprint", f"`{index['fingerprint']}`"),
                ("skipped images", ", ".join(f"{k} {v}" for k, v in index["skipped"].items()) or "none"),
            ],
        ),
        "",
        "## Recipe",
        "",
        *_table(("setting", "value"), [(name, _shown(value)) for name, value in index["recipe"].items()]),
        "",
        "## Buckets",
        "",
        *_table(("height x width, pixels", "samples"), list(index["buckets"].items())),
        "",
        "## Statistics",
        "",
        "Exact, per channel, over every stored value.",
        "",
        *_table(("channel", "mean", "std"), _statistics(index["statistics"])),
        "",
        "## Images",
        "",
        f"Source: `{index['source']['uri']}`. Latents decode to close copies of their images, so the images' own "
        "terms hold.",
        "",
        f"License: {facts.license or _UNKNOWN}",
        "",
        f"Citation: {_UNKNOWN}",
    ]


def _shown(value: object) -> str:
    return "none" if value is None else f"`{value}`"


def _statistics(statistics: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows = zip(statistics["mean"], statistics["std"], strict=True)
    return [(number, f"{mean:+.6f}", f"{std:.6f}") for number, (mean, std) in enumerate(rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in cells]
