"""A journal of finished images, from which an interrupted run goes on."""

import json
import os
from typing import Dict, List, Optional, Tuple

__all__ = ["Journal", "JournalError"]


class JournalError(ValueError):
    """A file that is not the journal of this run."""


class Journal:
    """Results per image in a file of JSON lines. The first line says what they belong to.

    A line that was cut off when the run was interrupted is removed, and its image is done again.
    """

    def __init__(self, path: str, belongs_to: dict):
        """
        Args:
            path: file, which may exist.
            belongs_to: name -> value of all that the results depend on.

        Raises:
            JournalError: if the file belongs to something else or is no journal; it is not changed.
        """
        self.path = path
        self.results: Dict[object, list] = {}
        lines, end = self._whole_lines()
        self._check(lines[0] if lines else None, belongs_to)
        self.results = {line["image_id"]: line["masks"] for line in lines[1:]}
        self._file = open(path, "a", encoding="utf-8")
        self._file.truncate(end)
        if not lines:
            self._write([{"belongs_to": belongs_to}])

    def add(self, results: Dict[object, list]) -> None:
        """Store the results of some images; they are on the disk when this returns.

        Args:
            results: image id -> list that JSON can hold.
        """
        self.results.update(results)
        self._write([{"image_id": i, "masks": masks} for i, masks in results.items()])

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        self.close()
        os.remove(self.path)

    def _write(self, lines: List[dict]) -> None:
        self._file.write("".join(_as_text(line) for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _whole_lines(self) -> Tuple[List[dict], int]:
        """The lines that are complete, and the number of bytes they take."""
        if not os.path.exists(self.path):
            return [], 0
        lines, end = [], 0
        with open(self.path, "rb") as f:
            for line in f:
                try:
                    content = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    content = None
                if content is None:
                    break
                lines.append(content)
                end += len(line)
        return lines, end

    def _check(self, header: Optional[dict], belongs_to: dict) -> None:
        """Raise JournalError unless the journal, of this first line or none, is this run's."""
        if header is None and self._is_cut_header(belongs_to):
            return
        known = header.get("belongs_to") if isinstance(header, dict) else None
        if known == belongs_to:
            return
        if not isinstance(known, dict):
            raise JournalError(
                f"{self.path} is in the way: it is not the journal of a run. Move it, or choose "
                "another output file"
            )
        differing = [k for k, v in belongs_to.items() if known.get(k) != v]
        raise JournalError(
            f"{self.path} belongs to an interrupted run with another {' and '.join(differing)}. "
            "Remove it to start anew, or choose another output file"
        )

    def _is_cut_header(self, belongs_to: dict) -> bool:
        """Whether the file is missing, empty, or holds a part of the first line only."""
        if not os.path.exists(self.path):
            return True
        line = _as_text({"belongs_to": belongs_to}).encode("utf-8")
        with open(self.path, "rb") as f:
            return line.startswith(f.read(len(line) + 1))


def _as_text(line: dict) -> str:
    return json.dumps(line) + "\n"
