"""Errors of programs end in one line; overrides come last."""

import argparse

import pytest
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from contrastmask.data.images import ImageFileError
from contrastmask.engine.programs import (
    UserError,
    hide_tracebacks,
    parse_args,
    program,
    user_errors,
)


def run(raise_error):
    @program
    def main():
        raise_error()

    return main()


@pytest.mark.parametrize(
    "error", [ValueError, OSError, ImportError, FloatingPointError, ImageFileError, UserError]
)
def test_one_line(capsys, error):
    def fail():
        raise error("file.json: this\n  is wrong")

    assert run(fail) == 1
    captured = capsys.readouterr()
    assert captured.err == "test_programs.py: error: file.json: this is wrong\n"
    assert captured.out == ""


def test_error_in_a_worker_of_a_loader(capsys):
    message = """Caught ImageFileError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "a.py", line 3, in b
ValueError: something before
The above exception was the direct cause of the following exception:
Traceback (most recent call last):
contrastmask.data.images.ImageFileError: image a.png
cannot be used"""

    def fail():
        raise ImageFileError(message)

    assert run(fail) == 1
    assert capsys.readouterr().err.endswith("error: image a.png cannot be used\n")


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    with pytest.raises(ProcessRaisedException):
        run(lambda: raise_(ProcessRaisedException("ZeroDivisionError: x", 0, 1)))


def raise_(error):
    raise error


def test_errors_of_other_processes(capsys):
    text = "Traceback ...\ncontrastmask.engine.programs.UserError: a.json:\nwrong\n"
    assert run(lambda: raise_(ProcessRaisedException(text, 1, 5))) == 1
    assert capsys.readouterr().err == "test_programs.py: error: a.json: wrong\n"
    assert run(lambda: raise_(ProcessExitedException("exit code 7", 1, 5, 7))) == 7
    assert "exit code 7" in capsys.readouterr().err


def test_exit_codes(capsys):
    assert run(lambda: None) == 0
    assert program(lambda: 3)() == 3
    assert run(lambda: raise_(KeyboardInterrupt())) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_traceback_in_the_log_file_only(tmp_path, capsys):
    loggers = [
        setup_logger(str(tmp_path / "log.txt"), name=x) for x in ("contrastmask", "detectron2")
    ]
    try:
        hide_tracebacks()

        def fail():
            try:
                raise ValueError("wrong value")
            except ValueError:
                loggers[1].exception("Exception during training:")
                raise

        assert run(fail) == 1
        loggers[1].error("still there")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            loggers[1].exception("a bug")
        captured = capsys.readouterr()
        shown = captured.out + captured.err
        assert shown.count("wrong value") == 1 and "in fail" not in shown
        assert "still there" in shown and "ZeroDivisionError" in shown
        log = (tmp_path / "log.txt").read_text()
        assert "The program stopped" in log and "in fail" in log and "wrong value" in log
    finally:
        for logger in loggers:
            logger.handlers.clear()
            logger.propagate = True
        setup_logger.cache_clear()


def test_message_without_text():
    with pytest.raises(UserError, match="ValueError"), user_errors():
        raise ValueError


def parse(*argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs=2)
    parser.add_argument("--input", nargs="+")
    parser.add_argument("--flag", action="store_true")
    return parse_args(parser, list(argv))


def test_overrides_come_last(caplog):
    args = parse("a", "b", "--input", "c", "d", "--flag", "X.Y", "1", "X.Z", "-2.5")
    assert args.files == ["a", "b"] and args.input == ["c", "d"] and args.flag
    assert args.opts == ["X.Y", "1", "X.Z", "-2.5"]
    assert parse("a", "b").opts == [] and not caplog.records
    assert parse("a", "b", "--opts", "X.Y", "1").opts == ["X.Y", "1"]
    assert "--opts" in caplog.text


def test_unknown_option(capsys):
    with pytest.raises(SystemExit):
        parse("a", "b", "--flog", "X.Y", "1")
    assert "--flog" in capsys.readouterr().err
