"""The steps of the installation, with a Python that only writes down what it is asked to do."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINNED = [ROOT / "requirements" / f"{name}.txt" for name in ("build", "constraints", "detectron2")]

# Appends its arguments to $LOG, fails where they match $FAIL, and copies itself for `-m venv`.
FAKE_PYTHON = """#!/bin/sh
case "$*" in "-c import sys"*|*--version) exit ${OLD:-0};; esac
echo "$*" >> "$LOG"
case "$*" in "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";; esac
test -z "$FAIL" || ! echo "$*" | grep -q -e "$FAIL"
"""
STEPS = ["-m venv", "build.txt", "constraints.txt", "detectron2", "--editable", "-c import"]


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path


def make(folder, *arguments, **variables):
    """Run make and return the finished process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-C", str(folder), *arguments]
    environment.update(variables)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files that the installation reads."""
    root = tmp_path / "checkout"
    for name in ("requirements", "tools/install"):
        shutil.copytree(ROOT / name, root / name)
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, root)
    script(root / "tools/install/detectron2.sh", '#!/bin/sh\nexec "$1" detectron2\n')
    return root


@pytest.fixture
def install(checkout, tmp_path):
    """Function: (target, variables) -> standard error and the steps that ran, the last may fail."""
    python = script(tmp_path / "python", FAKE_PYTHON)
    log = tmp_path / "log"

    def run(target="environment", **variables):
        log.write_text("")
        done = make(checkout, target, f"PYTHON={python}", LOG=str(log), **variables)
        lines = log.read_text().splitlines()
        assert (done.returncode == 0) == (done.stderr == ""), done.stderr
        return done.stderr, [next(step for step in STEPS if step in line) for line in lines]

    return run


def test_nothing_is_done_twice(install, checkout):
    assert install() == ("", STEPS)
    assert install() == ("", [])
    assert install("uninstall") == ("", [])
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("requirements/constraints.txt", STEPS[1:]),
        ("tools/install/detectron2-0.6.patch", STEPS[3:]),
        ("setup.py", STEPS[4:]),
    ],
)
def test_a_changed_file_runs_what_depends_on_it(install, checkout, changed, expected):
    install()
    time.sleep(0.05)  # file times have steps of some milliseconds
    os.utime(checkout / changed)
    assert install() == ("", expected)


@pytest.mark.parametrize("failing, said", [("build.txt", "registry"), ("^detectron2", "stopped")])
def test_an_interrupted_installation_continues(install, failing, said):
    error, steps = install(FAIL=failing)
    assert said in error
    assert install() == ("", STEPS[len(steps) - 1 :])


def test_pip_takes_over_where_uv_fails(install):
    error, steps = install(FAIL="uv pip")
    assert (error, steps.count("constraints.txt")) == ("", 2)


def test_a_removed_python_installs_everything_again(install, checkout):
    install()
    (checkout / ".venv/bin/python").unlink()
    assert install() == ("", STEPS)


@pytest.mark.parametrize("target", ["environment", "uninstall"])
def test_a_foreign_folder_is_left_alone(install, checkout, target):
    (checkout / ".venv").mkdir()
    (checkout / ".venv/keep.txt").write_text("mine")
    error, steps = install(target)
    assert ".venv was not made by this Makefile" in error
    assert os.listdir(checkout / ".venv") == ["keep.txt"]


def test_old_and_missing_python(install, checkout, tmp_path):
    error, steps = install(OLD="1")
    assert (f"'{tmp_path}/python' is not Python 3.10 or newer" in error, steps) == (True, [])
    assert "'no-such-python' is not" in make(checkout, "test", "PYTHON=no-such-python").stderr


@pytest.mark.parametrize("free_kb, enough", [(9_900_000, False), (10_100_000, True)])
def test_disk_space(install, tmp_path, free_kb, enough):
    script(tmp_path / "df", f"#!/bin/sh\necho Filesystem\necho /dev/x 5 5 {free_kb} 1% /\n")
    error, steps = install(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert ("less than 10 GB free" in error, steps) == (not enough, STEPS if enough else [])


def test_the_active_environment_is_left_alone_and_says_what_it_lacks(tmp_path):
    python = script(tmp_path / "bare-python", f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    done = make(ROOT, "environment", "USE_ACTIVE_ENV=1", f"PYTHON={python}")
    assert "lacks torch, torchvision, detectron2" in done.stderr
    assert make(ROOT, "environment", "USE_ACTIVE_ENV=1", f"PYTHON={sys.executable}").stderr == ""


def test_folder_without_detectron2(tmp_path):
    assert f"DETECTRON2={tmp_path}:" in make(ROOT, "test", f"DETECTRON2={tmp_path}").stderr


@pytest.mark.parametrize("is_relative", [True, False])
def test_folder_of_detectron2_comes_first(tmp_path, is_relative):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    folder = os.path.relpath(tmp_path, ROOT) if is_relative else tmp_path
    printed = make(ROOT, "--dry-run", "test", "USE_ACTIVE_ENV=1", f"DETECTRON2={folder}").stdout
    assert f'PYTHONPATH="{tmp_path}:{ROOT}:' in printed


def pins(path):
    """Names and versions of a requirement file, in which each release must have hashes."""
    result = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            match = re.fullmatch(
                r"([\w.-]+)==([\w.+!]+)(?:\s*;[^#]*?)?(?:\s+--hash=sha256:[0-9a-f]{64})+", line
            )
            assert match, f"{path.name}: not pinned with a hash: {line}"
            result[match[1]] = match[2]
    return result


def test_requirements_are_pinned_with_hashes_and_agree():
    build, constraints, detectron2 = map(pins, PINNED)
    assert list(detectron2) == ["pb1-detectron2"]
    assert build["setuptools"] == constraints["setuptools"]
    direct = (ROOT / "requirements/direct.txt").read_text()
    assert set(re.findall(r"^[\w.-]+", direct, re.M)) <= set(constraints)
    assert f"rev: v{constraints['ruff']} " in (ROOT / ".pre-commit-config.yaml").read_text()


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.name)
def test_requirements_name_no_host_and_no_folder(path):
    text = path.read_text().replace("--no-emit-index-url", "")
    assert not re.search(r"https?:|file:|index-url|find-links|trusted-host|(^|\s)/\w", text)
