"""What happens when a run cannot write to its output folder."""

import errno
import os
import tempfile
from contextlib import contextmanager

_FULL = "Free some space there, or move the folder to another disk and set OUTPUT_DIR to it"
_READ_ONLY = "Set OUTPUT_DIR to a folder that can be written to"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.ENOTDIR: _READ_ONLY,
    errno.EEXIST: _READ_ONLY,
}
# Those that only writing can cause.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class OutputError(OSError):
    """Output could not be written. The text says what, where, why, and what to do."""


def describe(path, error):
    """
    Args:
        path (str): what was to be written.
        error (OSError): why it was not.

    Returns:
        str: a sentence or two, without a full stop.
    """
    advice = _ADVICE.get(error.errno)
    text = f"{path} could not be written: {error.strerror or error}"
    return f"{text}. {advice}" if advice else text


def os_error_behind(error):
    """
    Args:
        error (BaseException):

    Returns:
        OSError or None: itself or the first one in the chain of its causes.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def check_output_dir(folder):
    """
    Make a folder if it is missing, and see that files can be written to it.

    Args:
        folder (str): a path on this machine; other kinds (``s3://...``) are not looked at.

    Raises:
        OutputError: if not.
    """
    if "://" in folder:
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"\0" * 4096)
    except OSError as error:
        raise OutputError(f"OUTPUT_DIR: {describe(folder, error)}") from error


@contextmanager
def exit_if_not_writable(folder, beginning):
    """
    End the program with a message, not a traceback, where output cannot be written.

    Args:
        folder (str): to be named if the error itself names no file.
        beginning (str): of the message.

    Raises:
        SystemExit: with the message.
    """
    try:
        yield
    except OutputError as error:
        raise SystemExit(f"{beginning}: {error}") from error
    except OSError as error:
        if error.errno not in _OF_WRITING:
            raise
        raise SystemExit(f"{beginning}: {describe(error.filename or folder, error)}") from error
