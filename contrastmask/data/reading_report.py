"""What was found while an annotation file was read: errors, warnings, repairs, counts."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Dict, Iterable, List, Tuple

from tabulate import tabulate

__all__ = ["AnnotationFileError", "Finding", "ReadingReport", "short"]

# In place of an entry, for what concerns all of a file.
WHOLE_FILE = "the file"
_NUM_EXAMPLES = 5
_LEVELS = ("error", "warning", "repaired")


def short(value) -> str:
    """A value as it is written in Python, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class AnnotationFileError(ValueError):
    """An annotation file that cannot be used; says which file, which entry and why.

    Attributes:
        reason (str): what is wrong, without the values that differ from entry to entry.
    """

    def __init__(self, path: str, reason: str, *, where: str = "", value: str = ""):
        message = f"{where}: {reason}" if where else reason
        super().__init__(f"{path}: {message}" + (f"; got {value}" if value else ""))
        self.reason = reason


@dataclass
class Finding:
    """One kind of problem, or of repair.

    Attributes:
        level: "error": training cannot start, or would stop. "warning": worth a look. "repaired":
            unusual, and understood.
        what: the problem in words.
        where: the entries concerned, each in a few words.
    """

    level: str
    what: str
    where: List[str] = field(default_factory=list)

    def examples(self) -> str:
        """The first entries; a noun that all of them begin with is said once."""
        shown = self.where[:_NUM_EXAMPLES]
        noun, _, first = shown[0].partition(" ")
        if noun.isalpha() and all(x.startswith(f"{noun} ") and "," not in x for x in shown[1:]):
            shown = [shown[0], *(x[len(noun) + 1 :] for x in shown[1:])]
        separator = "; " if any("," in x for x in shown) else ", "
        return separator.join(shown) + (", ..." if len(self.where) > _NUM_EXAMPLES else "")


class ReadingReport:
    """Collects findings. The loader lets it raise the first error, the inspector collects all."""

    def __init__(self, path: str, *, stop_at_errors: bool = True):
        """
        Args:
            path: of the annotation file, named in errors.
            stop_at_errors: raise an error instead of collecting it.
        """
        self.path = path
        self.stop_at_errors = stop_at_errors
        self.counts: Counter = Counter()
        self._findings: Dict[Tuple[str, str], Finding] = {}

    @property
    def findings(self) -> List[Finding]:
        """Errors first, then warnings and repairs; the most frequent of each first."""
        return sorted(
            self._findings.values(), key=lambda x: (_LEVELS.index(x.level), -len(x.where))
        )

    @property
    def errors(self) -> List[Finding]:
        return [x for x in self.findings if x.level == "error"]

    def error(self, reason: str, where: str = "", value: str = "") -> None:
        """
        Args:
            reason: what is wrong, without the values that differ from entry to entry.
            where: the entry, such as "annotation 5 (image 7)"; empty for the whole file.
            value: what stands there.

        Raises:
            AnnotationFileError: unless errors are collected.
        """
        if self.stop_at_errors:
            raise AnnotationFileError(self.path, reason, where=where, value=value)
        got = f"got {value}" if value else ""
        self._add("error", reason, ", ".join(filter(None, [where, got])) or WHOLE_FILE)

    def warn(self, what: str, where: str) -> None:
        self._add("warning", what, where)

    def repaired(self, what: str, where: str) -> None:
        self._add("repaired", what, where)

    def count(self, what: str) -> None:
        """Count an annotation of a usual kind."""
        self.counts[what] += 1

    def table(self) -> str:
        """All findings, as a table for people."""
        rows = [[x.level, x.what, len(x.where), x.examples()] for x in self.findings]
        return tabulate(rows, headers=["", "what", "number", "where"], tablefmt="pipe")

    def where_of(self, what: str) -> List[str]:
        """The entries of a kind of finding, whatever its level."""
        return [
            where for (_, kind), x in self._findings.items() if kind == what for where in x.where
        ]

    def _add(self, level: str, what: str, where: str) -> None:
        finding = self._findings.setdefault((level, what), Finding(level, what))
        finding.where.append(where)


def names(entries: Iterable[str], limit: int = 10) -> str:
    """Entries in a sentence; what is beyond the limit becomes dots."""
    shown = list(islice(entries, limit + 1))
    return ", ".join(shown[:limit]) + (", ..." if len(shown) > limit else "")
