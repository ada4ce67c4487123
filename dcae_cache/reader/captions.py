"""A choice among several captions. Knows nothing of files or orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .batch import Draws
from .transform import Transform


class ChooseCaption(Transform):
    """One of a sample's captions, another one in each epoch, as "caption".

    ``sources``: columns or ``attributes.NAME``, each holding a text, a list of texts, or nothing. ``weights``: of each
    source, shared by the texts in it; by default every text counts alike. ``scores``: for one source that is a list,
    the column or attribute with the list of its texts' weights, such as CLIP scores. A sample without any gets "".
    """

    def __init__(
        self, *sources: str, weights: Sequence[float] | None = None, scores: str | None = None, into: str = "caption"
    ) -> None:
        if not sources:
            raise UsageError("a choice of captions needs at least one column.")
        if weights is not None and (len(weights) != len(sources) or min(weights) < 0 or sum(weights) <= 0):
            raise UsageError(f"`weights` must be {len(sources)} numbers of at least 0, one a source, not all 0.")
        if scores is not None and len(sources) != 1:
            raise UsageError("`scores` are of the texts of one source; name one.")
        self.sources, self.weights, self.scores, self.into = sources, weights, scores, into
        self.columns = (*sources, *([scores] if scores else []))

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        places = draws.uniform(f"choose {self.into}")
        chosen = [self._choose(batch, i, float(place)) for i, place in enumerate(places)]
        return {**batch, self.into: chosen}

    def _choose(self, batch: dict[str, Any], index: int, place: float) -> str:
        texts: list[str] = []
        weights: list[float] = []
        for number, source in enumerate(self.sources):
            found = _texts(batch[source][index])
            texts += found
            weights += self._weights_of(batch, index, number, found)
        kept = [(text, weight) for text, weight in zip(texts, weights, strict=True) if text and weight > 0]
        return kept[_drawn(np.array([weight for _, weight in kept]), place)][0] if kept else ""

    def _weights_of(self, batch: dict[str, Any], index: int, number: int, texts: list[str]) -> list[float]:
        if not texts:
            return []
        if self.scores:
            scores = batch[self.scores][index]
            if not isinstance(scores, list) or len(scores) != len(texts):
                raise UsageError(
                    f"{self.scores} must be a list of as many numbers as there are texts in {self.sources[0]} "
                    f"({len(texts)}), not {scores!r}."
                )
            return [float(score) for score in scores]
        count = sum(1 for text in texts if text)
        return [1.0 if self.weights is None else self.weights[number] / max(count, 1)] * len(texts)


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item or "") for item in value] if isinstance(value, list | tuple) else [str(value)]


def _drawn(weights: NDArray[np.float64], place: float) -> int:
    """The index at which a number in [0, 1) lies among weights laid end to end."""
    ends = np.cumsum(weights)
    return min(int(np.searchsorted(ends, place * ends[-1], side="right")), len(weights) - 1)
