import errno
import json

import pytest

from contrastmask import atomic_files
from contrastmask.atomic_files import is_unfinished, write_json, write_whole


def contents(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with write_whole(str(path), "w", encoding="utf-8") as f:
        f.write("neü")
        f.flush()
        (other,) = set(contents(tmp_path)) - {"a.txt"}
        assert is_unfinished(other) and not is_unfinished("a.txt")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"a.txt": "neü"}


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_error_leaves_the_file_as_it_was(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), write_whole(str(tmp_path / "a.txt"), "w") as f:
        f.write("new")
        raise error
    assert contents(tmp_path) == {"a.txt": "old"}


def test_file_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    on_disk = []
    monkeypatch.setattr(atomic_files.os, "fsync", lambda _: on_disk.append(contents(tmp_path)))
    with write_whole(str(tmp_path / "a"), "w") as f:
        f.write("new")
    assert on_disk == [{"a.unfinished": "new"}]


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error, write_whole(str(tmp_path / "b" / "a"), "w"):
        pass
    assert error.value.filename == str(tmp_path / "b" / "a")

    def fail(cause):
        raise RuntimeError("inline_container.cc") from cause

    with pytest.raises(OSError) as error, write_whole(str(tmp_path / "a"), "w"):
        fail(OSError(errno.ENOSPC, "No space left"))
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="'other'"), write_whole(str(tmp_path / "a"), "w"):
        open("other")
    with pytest.raises(RuntimeError), write_whole(str(tmp_path / "a"), "w"):
        fail(None)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("num_entries", [0, 1, 999, 1000, 1001, 2500])
def test_json_in_pieces(tmp_path, num_entries):
    entries = [{"id": i, "é": [i / 7, None, {}]} for i in range(num_entries)]
    content = {"info": {"a": [1]}, "annotations": entries, 'x"y': "z", "images": [[], "]"]}
    for part in (content, {"annotations": entries}, {}):
        write_json(str(tmp_path / "a"), part)
        assert (tmp_path / "a").read_text(encoding="utf-8") == json.dumps(part)
