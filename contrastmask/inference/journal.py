"""A journal of finished images, from which an interrupted run goes on."""

import json
import os
from typing import Dict, List

__all__ = ["Journal", "JournalError"]


class JournalError(ValueError):
    """A journal that does not belong to this run."""


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
            JournalError: if the file belongs to something else.
        """
        self.path = path
        self.results: Dict[object, list] = {}
        lines = self._whole_lines()
        if lines:
            self._check(lines[0], belongs_to)
            self.results = {line["image_id"]: line["masks"] for line in lines[1:]}
        self._file = open(path, "a", encoding="utf-8")
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
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _whole_lines(self) -> List[dict]:
        """The lines that are complete; the file is cut after them."""
        if not os.path.exists(self.path):
            return []
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
        os.truncate(self.path, end)
        return lines

    def _check(self, header: dict, belongs_to: dict) -> None:
        known = header.get("belongs_to") if isinstance(header, dict) else None
        if known == belongs_to:
            return
        differing = [k for k, v in belongs_to.items() if not known or known.get(k) != v]
        raise JournalError(
            f"{self.path} belongs to an interrupted run with another {' and '.join(differing)}. "
            "Remove it to start anew, or choose another output file"
        )
