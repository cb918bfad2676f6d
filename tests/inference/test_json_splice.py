import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastmask.inference.json_splice import splice_annotations

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=5,
)
ANNOTATIONS = st.lists(
    st.dictionaries(
        st.sampled_from(["id", "bbox", "segmentation", "mask_score", 'ü"\\,}']), VALUES, min_size=1
    ),
    max_size=5,
)
STYLES = st.fixed_dictionaries(
    {
        "indent": st.sampled_from([None, 0, 2, "\t"]),
        "separators": st.sampled_from([None, (",", ":"), (" ,\r\n", " : ")]),
        "ensure_ascii": st.booleans(),
    }
)


@settings(max_examples=80, deadline=None)
@given(ANNOTATIONS, st.dictionaries(st.text(max_size=4), VALUES, max_size=3), STYLES, st.data())
def test_only_what_is_asked_for_changes(annotations, others, style, data):
    content = {"info": 1, "annotations": annotations, **others}
    content["annotations"] = annotations
    text = json.dumps(content, **style)
    some = st.sets(st.integers(0, len(annotations) - 1)) if annotations else st.just(set())
    chosen = data.draw(some)
    new = {"segmentation": {"size": [3, 4], "counts": 'a"b\\c'}, "mask_score": 0.75}
    spliced = splice_annotations(text, {index: new for index in chosen})
    expected = [{**x, **new} if i in chosen else x for i, x in enumerate(annotations)]
    # The order of keys, of all objects, is part of the comparison.
    assert json.dumps(json.loads(spliced)) == json.dumps({**content, "annotations": expected})
    if not chosen:
        assert spliced == text


def test_text_of_all_else_is_kept():
    text = """ {"annotations" : [{"id":1,"bbox":[1.00, 2e0,3,4 ], "segmentation":null}
    , {"id": 2,  "x": 0.10}] , "images":[ ]}\r\n"""
    spliced = splice_annotations(text, {0: {"segmentation": 5}, 1: {"segmentation": 6}})
    assert spliced == text.replace("null", "5").replace("0.10", '0.10,  "segmentation": 6')


def test_style_of_new_members():
    annotations = [{"id": 1, "iscrowd": 0}]
    compact = json.dumps({"annotations": annotations}, separators=(",", ":"))
    new = {0: {"mask": {"size": [1, 2]}}}
    assert '"iscrowd":0,"mask":{"size":[1,2]}}' in splice_annotations(compact, new)
    lines = splice_annotations(json.dumps({"annotations": annotations}, indent=2), new)
    assert '      "iscrowd": 0,\n      "mask": {"size": [1, 2]}\n    }' in lines


def test_last_of_two_lists_counts():
    text = '{"annotations": [{"a": 1}, {"a": 2}], "annotations": [{"a": 3}]}'
    assert json.loads(splice_annotations(text, {0: {"b": 1}})) == {
        "annotations": [{"a": 3, "b": 1}]
    }
    with pytest.raises(IndexError):
        splice_annotations(text, {1: {"b": 1}})
