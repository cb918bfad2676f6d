"""What the programs share: their arguments, and errors that end in one line."""

import argparse
import functools
import logging
import os
import re
import sys
from contextlib import contextmanager
from typing import Callable, Iterator, List, Optional

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..predictor import Predictor

__all__ = [
    "UserError",
    "add_model_arguments",
    "build_predictor",
    "hide_tracebacks",
    "parse_args",
    "program",
    "user_errors",
]

# Raised, with a complete message, for what a user can change: data, files, settings, packages.
_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
_EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """An error whose message says all that a user needs."""


def program(main: Callable[..., Optional[int]]) -> Callable[..., int]:
    """Decorator of a program's main function, which returns the exit code or None for 0.

    User errors become one line on the terminal and exit code 1. Their traceback goes to the log
    file, if there is one.
    """
    name = os.path.basename(main.__code__.co_filename)

    def fail(message: str, code: int = 1) -> int:
        print(f"{name}: error: {_one_line(message)}", file=sys.stderr)
        return code

    @functools.wraps(main)
    def run(*args, **kwargs) -> int:
        try:
            with user_errors():
                return main(*args, **kwargs) or 0
        except UserError as error:
            return fail(str(error))
        except ProcessRaisedException as error:  # of one of several processes
            marker = f"{UserError.__module__}.{UserError.__qualname__}: "
            if marker not in str(error):
                raise
            return fail(str(error).split(marker)[-1])
        except ProcessExitedException as error:
            return fail(str(error), error.exit_code or 1)
        except KeyboardInterrupt:
            return fail("interrupted", _EXIT_INTERRUPTED)

    return run


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise a UserError for errors that a user can act on; the traceback goes to the log file."""
    try:
        yield
    except UserError:
        raise
    except _ERRORS as error:
        logger = logging.getLogger("contrastmask")
        trace = type(error), error, error.__traceback__
        record = logger.makeRecord(
            logger.name, logging.ERROR, __file__, 0, "The program stopped:", (), trace
        )
        for handler in logger.handlers:
            if not _is_terminal(handler):
                handler.handle(record)
        raise UserError(str(error) or type(error).__name__) from error


def hide_tracebacks() -> None:
    """Keep Detectron2 from logging the traceback of a user error on the terminal."""
    for handler in logging.getLogger("detectron2").handlers:
        if _is_terminal(handler):
            handler.addFilter(lambda x: not (x.exc_info and isinstance(x.exc_info[1], _ERRORS)))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`build_predictor`."""
    parser.add_argument("--weights", required=True, help="checkpoint of the trained model")
    parser.add_argument(
        "--config-file", help="config of the model, for a checkpoint that does not hold it"
    )


def parse_args(
    parser: argparse.ArgumentParser, argv: Optional[List[str]] = None
) -> argparse.Namespace:
    """Parse arguments; what is left of them, KEY VALUE overrides of the config, becomes `opts`."""
    parser.epilog = "Further arguments are KEY VALUE pairs that override the config."
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    unknown = [x for x in rest if re.match(r"-[^\d.]", x)]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.opts:
        logging.getLogger(__name__).warning("--opts is not needed: give KEY VALUE pairs without it")
    args.opts = rest + args.opts
    return args


def build_predictor(args: argparse.Namespace) -> Predictor:
    """The model that is named in the arguments."""
    if args.config_file:
        return Predictor(args.config_file, args.weights, opts=args.opts)
    return Predictor(args.weights, opts=args.opts)


def _is_terminal(handler: logging.Handler) -> bool:
    # Detectron2 gives StreamHandlers to files as well; names like <stdout> are no files.
    return str(getattr(getattr(handler, "stream", None), "name", "<")).startswith("<")


def _one_line(message: str) -> str:
    # An error in a worker of a data loader has a traceback as its message, the error being its end.
    if "Traceback (most recent call last)" in message:
        message = re.split(r"\n[\w.]*(?:Error|Exception): ", message)[-1]
    return " ".join(message.split())
