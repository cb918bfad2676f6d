import pytest

from contrastmask.inference.journal import Journal, JournalError

RUN = {"model": "abc", "annotation file": "def"}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.journal")


def write(path, results):
    journal = Journal(path, RUN)
    journal.add(results)
    journal.close()


def test_results_survive(path):
    write(path, {7: [{"id": 1}], "x": []})
    write(path, {8: [{"id": "é"}]})
    assert Journal(path, RUN).results == {7: [{"id": 1}], "x": [], 8: [{"id": "é"}]}


def test_every_cut_of_the_file(path):
    write(path, {1: ["a"], 2: ["b"]})
    with open(path, "rb") as f:
        content = f.read()
    expected = {0: {}, 1: {}, 2: {1: ["a"]}, 3: {1: ["a"], 2: ["b"]}}
    for end in range(len(content) + 1):
        with open(path, "wb") as f:
            f.write(content[:end])
        journal = Journal(path, RUN)
        assert journal.results == expected[content[:end].count(b"\n")]
        journal.add({3: ["c"]})
        journal.close()
        assert Journal(path, RUN).results == {**journal.results, 3: ["c"]}


def test_of_another_run(path):
    write(path, {1: []})
    with pytest.raises(JournalError, match="another model"):
        Journal(path, {**RUN, "model": "xyz"})
    with open(path, "w") as f:
        f.write('["something else"]\n')
    with pytest.raises(JournalError, match="out.journal"):
        Journal(path, RUN)


@pytest.mark.parametrize(
    "content",
    [b"notes of mine", b"notes\nof mine\n", b'["something else"]\n', b"{}\nnotes", b"\xff\xfe\x00"],
)
def test_a_file_that_is_no_journal_stays(path, content):
    with open(path, "wb") as f:
        f.write(content)
    with pytest.raises(JournalError, match="out.journal is in the way"):
        Journal(path, RUN)
    with open(path, "rb") as f:
        assert f.read() == content


def test_of_another_run_stays(path):
    write(path, {1: []})
    with open(path, "ab") as f:
        f.write(b'{"image_id": 2, "mas')
    with open(path, "rb") as f:
        content = f.read()
    with pytest.raises(JournalError, match="another model"):
        Journal(path, {**RUN, "model": "xyz"})
    with open(path, "rb") as f:
        assert f.read() == content


def test_remove(path, tmp_path):
    Journal(path, RUN).remove()
    assert not list(tmp_path.iterdir())
