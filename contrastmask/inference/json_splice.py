"""Changing members of single annotations in the text of a COCO-format file, and nothing else."""

import json
import re
from typing import Dict, Iterator, List, NamedTuple, Tuple

__all__ = ["splice_annotations"]

_SPACE = re.compile(r"[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode  # (text, start) -> value, end


class _Member(NamedTuple):
    """Where a member of a JSON object is in the text."""

    key: str
    key_start: int
    key_end: int
    value_start: int
    value_end: int


def splice_annotations(text: str, changes: Dict[int, dict]) -> str:
    """Set members of annotations; every other character of the text stays as it is.

    New members go to the end of their annotation, in the style of its other members.

    Args:
        text (str): of a JSON object with a list "annotations" of objects that are not empty.
        changes (dict): index into "annotations" -> members to set, with values for JSON.

    Returns:
        str: the new text.

    Raises:
        IndexError: for an index that "annotations" does not have.
    """
    spans = _annotation_spans(text)
    pieces, position = [], 0
    for index in sorted(changes):
        if not 0 <= index < len(spans):
            raise IndexError(f"There is no annotation number {index} of {len(spans)}")
        for start, end, new in _edits(text, spans[index][0], changes[index]):
            pieces += [text[position:start], new]
            position = end
    return "".join([*pieces, text[position:]])


def _skip_space(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()


def _members(text: str, start: int, end_of_value) -> Iterator[_Member]:
    """Members of the object that starts at `start`; `end_of_value` maps key and start to end."""
    position = _skip_space(text, start + 1)
    while text[position] != "}":
        key, key_end = _decode(text, position)
        value_start = _skip_space(text, _skip_space(text, key_end) + 1)  # after the colon
        value_end = end_of_value(key, value_start)
        yield _Member(key, position, key_end, value_start, value_end)
        position = _skip_space(text, value_end)
        if text[position] == ",":
            position = _skip_space(text, position + 1)


def _annotation_spans(text: str) -> List[Tuple[int, int]]:
    """Start and end of each annotation."""
    spans: List[Tuple[int, int]] = []

    def end_of_value(key, start):
        if key != "annotations":
            return _decode(text, start)[1]
        spans.clear()  # of two members with the same key, the last one counts
        position = _skip_space(text, start + 1)
        while text[position] != "]":
            end = _decode(text, position)[1]
            spans.append((position, end))
            position = _skip_space(text, end)
            if text[position] == ",":
                position = _skip_space(text, position + 1)
        return position + 1

    for _ in _members(text, _skip_space(text, 0), end_of_value):
        pass
    return spans


def _edits(text: str, start: int, values: dict) -> List[Tuple[int, int, str]]:
    """What to put between which positions so that the object at `start` has these values."""
    members = list(_members(text, start, lambda key, position: _decode(text, position)[1]))
    last = members[-1]
    comma = ", "
    if len(members) > 1:
        comma = text[members[-2].value_end : last.key_start]
    colon = text[last.key_end : last.value_start]
    separators = (",", ":") if comma == "," else (", ", ": ")
    known = {member.key: member for member in members}
    edits, added = [], []
    for key, value in values.items():
        new = json.dumps(value, separators=separators)
        if key in known:
            edits.append((known[key].value_start, known[key].value_end, new))
        else:
            added.append(f"{comma}{json.dumps(key)}{colon}{new}")
    edits.append((last.value_end, last.value_end, "".join(added)))
    return sorted(edits)
