"""Labels of a cache, which are text, as the class numbers that trainers want. Knows nothing of files."""

from __future__ import annotations

from ..errors import UsageError
from ..text import whole_number
from .exporter import Facts

_LARGEST = 2**31 - 1


def class_numbers(facts: Facts, format_name: str) -> dict[str, int]:
    """``number_classes``, for formats that want a class for every sample: raises UsageError where one has none."""
    if facts.unlabelled:
        raise UsageError(
            f"{format_name} wants a label for every sample, and {facts.unlabelled:,} of {facts.num_samples:,} have "
            "none. Encode from class folders or with `label_column`, or leave them out: `where` 'label is not null'."
        )
    return number_classes(facts, format_name)


def number_classes(facts: Facts, format_name: str) -> dict[str, int]:
    """Label -> class number, of the labels that occur: the number that a label is, or else its place among the sorted
    names of all labels of the cache, whichever samples were chosen.

    Raises UsageError where labels are numbers and names, no class numbers, or two spellings of one.
    """
    numbers = {label: whole_number(label) for label in facts.labels}
    named = [label for label, number in numbers.items() if number is None]
    if not named:
        return _distinct({label: number for label, number in numbers.items() if number is not None}, format_name)
    numeric = [label for label in facts.all_labels if whole_number(label) is not None]
    if numeric:
        raise UsageError(
            f"{format_name} wants classes that are all numbers or all names; {facts.cache} has both, such as "
            f"{numeric[0]!r} and {named[0]!r}."
        )
    places = {label: place for place, label in enumerate(facts.all_labels)}
    return {label: places[label] for label in facts.labels}


def _distinct(numbers: dict[str, int], format_name: str) -> dict[str, int]:
    seen: dict[int, str] = {}
    for label, number in numbers.items():
        if number > _LARGEST:
            raise UsageError(f"{format_name} wants class numbers up to {_LARGEST}; {label} is none.")
        if seen.setdefault(number, label) != label:
            raise UsageError(f"{format_name} wants one label for each class; {seen[number]!r} and {label!r} are one.")
    return numbers
