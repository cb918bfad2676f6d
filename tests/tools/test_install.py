"""The installer: messages, notes on what is done, requirement files, adaptation of Detectron2."""

import ast
import collections
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[2]
INSTALL_DIR = PROJECT_ROOT / "tools" / "install"
REQUIREMENT_FILES = sorted((PROJECT_ROOT / "requirements").glob("*.txt"))
DiskUsage = collections.namedtuple("DiskUsage", "total used free")


@pytest.fixture
def bootstrap(monkeypatch):
    monkeypatch.syspath_prepend(str(INSTALL_DIR))
    import bootstrap

    return bootstrap


@pytest.fixture
def adaptations(monkeypatch):
    monkeypatch.syspath_prepend(str(INSTALL_DIR))
    import detectron2_adaptations

    return detectron2_adaptations


def run_make(*arguments, path=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        ["make", "-C", str(PROJECT_ROOT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


# Python version


def test_bootstrap_can_be_parsed_by_old_pythons():
    source = (INSTALL_DIR / "bootstrap.py").read_text()
    ast.parse(source, feature_version=(3, 4))
    assert not [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.JoinedStr)]


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 9, 20)])
def test_old_python_is_named_with_a_newer_one_of_the_machine(bootstrap, version):
    message = bootstrap.python_problem(version, find={"python3.12": "/usr/bin/python3.12"}.get)
    assert "Python {}.{} is too old, 3.10 or newer is needed".format(*version) in message
    assert "make test PYTHON=python3.12" in message


def test_old_python_without_a_newer_one(bootstrap):
    message = bootstrap.python_problem((3, 9, 0), find=lambda name: None)
    assert "make test PYTHON=/path/to/python3" in message


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 1), (4, 0, 0)])
def test_new_enough_python(bootstrap, version):
    assert bootstrap.python_problem(version) is None


def test_make_without_python_says_so():
    done = run_make("test", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "there is no 'no-such-python' here. Install Python 3.10 or newer" in done.stderr


# Disk space, network


@pytest.mark.parametrize("free_gb, enough", [(1000, True), (0.3, False)])
def test_disk_space(bootstrap, tmp_path, free_gb, enough):
    usage = DiskUsage(0, 0, free_gb * 1e9)
    problem = bootstrap.disk_problem(str(tmp_path), disk_usage=lambda folder: usage)
    if enough:
        assert problem is None
    else:
        assert "has 0.3 GB free" in problem
        assert "needs about {} GB".format(bootstrap.NEEDED_GB) in problem


def test_full_disk_stops_before_anything_is_created(bootstrap, tmp_path):
    venv = tmp_path / "venv"
    with pytest.raises(bootstrap.InstallError, match="Not enough disk space"):
        bootstrap.set_up(str(venv), disk_usage=lambda folder: DiskUsage(1, 1, 0))
    assert not venv.exists()


@pytest.mark.parametrize(
    "errors, meaning",
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "The disk is full"),
        ("Failed to establish a new connection: [Errno -3]", "registry could not be reached"),
        (
            "WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found",
            "registry could not be reached",
        ),
        ("ERROR: Could not find a version (from versions: 2.1.0)", "no release of a package"),
        ("Ignored the following versions that require a different python version", "no release"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "names by its hash"),
    ],
)
def test_failures_of_pip_in_plain_words(bootstrap, errors, meaning):
    assert meaning in bootstrap.explain_pip_failure(errors)


def test_unknown_failure_of_pip_is_not_explained(bootstrap):
    assert bootstrap.explain_pip_failure("ERROR: something else") is None


def test_failing_command_raises_with_its_meaning(bootstrap, capfd):
    script = "import sys; sys.exit('OSError: [Errno 28] No space left on device')"
    with pytest.raises(bootstrap.InstallError, match="The disk is full"):
        bootstrap.run_checked([sys.executable, "-c", script])
    assert "No space left on device" in capfd.readouterr().err


def test_pip_without_network_is_explained(bootstrap, tmp_path):
    """The registry is replaced by a port of this machine where nothing listens."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment.update(PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="0")
    environment.update(PIP_INDEX_URL="http://127.0.0.1:9/simple", NO_PROXY="127.0.0.1")
    command = [sys.executable, "-m", "pip", "download", "--dest", str(tmp_path), "--no-deps"]
    with pytest.raises(bootstrap.InstallError, match="registry could not be reached"):
        bootstrap.run_checked(command + ["no-such-package==1.0"], environment)


# What is done already


@pytest.fixture
def installer(bootstrap, monkeypatch, tmp_path):
    """The installer on a copy of the files it depends on; the steps only note that they ran."""
    root = tmp_path / "project"
    for names in bootstrap.STEP_FILES.values():
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / name, root / name)
    ran = []

    def create_venv(venv):
        ran.append("venv")
        python = Path(bootstrap.venv_python(venv))
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        return bootstrap.State(venv, str(root))

    state = bootstrap.State
    monkeypatch.setattr(bootstrap, "State", lambda venv, root=str(root): state(venv, root))
    monkeypatch.setattr(bootstrap, "create_venv", create_venv)

    def fake_step(name):
        def step(venv):
            ran.append(name)
            result = Path(venv, bootstrap.STEP_RESULTS[name].replace("*", "3"))
            result.parent.mkdir(parents=True, exist_ok=True)
            result.touch()

        return step

    for name in bootstrap.STEP_FILES:
        monkeypatch.setattr(bootstrap, f"install_{name}", fake_step(name))

    def run():
        ran.clear()
        bootstrap.set_up(str(root / ".venv"), disk_usage=lambda folder: DiskUsage(0, 0, 1e12))
        return list(ran)

    run.root = root
    return run


def test_nothing_is_done_twice(installer):
    assert installer() == ["venv", "packages", "detectron2"]
    assert installer() == []


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("requirements/constraints.txt", ["packages"]),
        ("requirements/detectron2.txt", ["detectron2"]),
        ("tools/install/detectron2_adaptations.py", ["detectron2"]),
    ],
)
def test_a_changed_file_runs_its_step_again(installer, changed, expected):
    installer()
    with open(installer.root / changed, "a") as f:
        f.write("# changed\n")
    assert installer() == expected
    assert installer() == []


def test_an_interrupted_installation_goes_on(installer, bootstrap, monkeypatch):
    def fail(venv):
        raise bootstrap.InstallError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install_detectron2", fail)
        with pytest.raises(bootstrap.InstallError, match="cut off"):
            installer()
    assert installer() == ["detectron2"]


def test_a_lost_python_makes_the_environment_again(installer, bootstrap):
    installer()
    os.remove(bootstrap.venv_python(str(installer.root / ".venv")))
    assert installer() == ["venv", "packages", "detectron2"]


def test_a_removed_package_is_installed_again(installer):
    installer()
    shutil.rmtree(installer.root / ".venv/lib/python3/site-packages/detectron2")
    assert installer() == ["detectron2"]


def test_a_foreign_folder_is_left_alone(installer, bootstrap):
    foreign = installer.root / ".venv" / "keep.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    with pytest.raises(bootstrap.InstallError, match="was not made by this installer"):
        installer()
    assert foreign.read_text() == "mine"


def test_uninstall_refuses_a_foreign_folder(tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    done = run_make("uninstall", f"VENV={tmp_path}")
    assert done.returncode != 0
    assert "nothing removed" in done.stderr
    assert (tmp_path / "keep.txt").exists()


# Another environment, another Detectron2


def test_active_environment_names_each_missing_package(bootstrap):
    modules = (("json", "the standard library"), ("no_such_module_1", "package-of-1"))
    (problem,) = bootstrap.import_problems(sys.executable, modules)
    assert "no_such_module_1: ModuleNotFoundError" in problem
    assert "package-of-1" in problem


def test_active_environment_error_is_clear(bootstrap, monkeypatch):
    monkeypatch.setattr(bootstrap, "NEEDED_MODULES", (("no_such_module_1", "package-of-1"),))
    monkeypatch.setattr(
        bootstrap, "import_problems", lambda python: ["  no_such_module_1: ModuleNotFoundError"]
    )
    with pytest.raises(bootstrap.InstallError, match="no_such_module_1"):
        bootstrap.check_active(sys.executable)


def test_detectron2_folder_without_detectron2(tmp_path):
    done = run_make("environment", f"PYTHON={sys.executable}", f"DETECTRON2={tmp_path}")
    assert done.returncode != 0
    assert f"DETECTRON2={tmp_path}: there is no detectron2/__init__.py" in done.stderr


# Requirement files


@pytest.mark.parametrize("path", REQUIREMENT_FILES, ids=lambda path: path.name)
def test_requirement_files_name_no_host_and_no_folder(path):
    text = path.read_text()
    assert not re.search(
        r"https?:|file:|index-url|find-links|trusted-host", text.replace("--no-emit-index-url", "")
    )
    assert not re.search(r"(^|\s)/\w", text)


def pinned_with_hashes(path):
    """Names of the requirements in a pinned file, checking that each has `==` and a hash."""
    logical_lines = path.read_text().replace("\\\n", " ").splitlines()
    names = set()
    for line in logical_lines:
        if line.strip() and not line.lstrip().startswith("#"):
            assert re.match(
                r"[\w.\-]+==[\w.+!]+(\s*;[^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+", line
            )
            names.add(re.match(r"[\w.\-]+", line)[0])
    return names


@pytest.mark.parametrize("name", ["build.txt", "constraints.txt", "detectron2.txt"])
def test_every_requirement_is_pinned_with_a_hash(name):
    assert pinned_with_hashes(PROJECT_ROOT / "requirements" / name)


def test_every_direct_requirement_is_in_the_constraints():
    lines = (PROJECT_ROOT / "requirements" / "direct.txt").read_text().splitlines()
    direct = {re.match(r"[\w.\-]+", line)[0] for line in lines if line and line[0] != "#"}
    assert direct <= pinned_with_hashes(PROJECT_ROOT / "requirements" / "constraints.txt")


def test_build_tool_is_the_same_release_in_both_files():
    pins = [
        re.search(r"^setuptools==\S+", (PROJECT_ROOT / "requirements" / name).read_text(), re.M)[0]
        for name in ("build.txt", "constraints.txt")
    ]
    assert pins[0] == pins[1]


# Adaptation of Detectron2


def write_expected_source(adaptations, root):
    """Make files that hold exactly the text which the table expects."""
    contents = collections.defaultdict(str)
    for adaptation in adaptations.ADAPTATIONS:
        for r in adaptation.replacements:
            contents[r.path] += "".join(f"{r.old}\n" for _ in range(r.count))
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return contents


def test_adaptations_are_made(adaptations, tmp_path):
    contents = write_expected_source(adaptations, tmp_path)
    assert adaptations.adapt_source(tmp_path) == len(contents) + 1
    for adaptation in adaptations.ADAPTATIONS:
        assert adaptation.reason
        for r in adaptation.replacements:
            assert r.new in (tmp_path / r.path).read_text()
    assert "np.bool" not in (tmp_path / "detectron2/structures/masks.py").read_text()
    ast.parse((tmp_path / adaptations.MISSING_OPS_PATH).read_text())


def test_missing_source_text_stops_and_changes_nothing(adaptations, tmp_path):
    write_expected_source(adaptations, tmp_path)
    last = adaptations.ADAPTATIONS[-1].replacements[-1]
    (tmp_path / last.path).write_text("import pkg_resources\n")
    before = {path: path.read_text() for path in tmp_path.rglob("*.py")}
    with pytest.raises(adaptations.AdaptationError) as error:
        adaptations.adapt_source(tmp_path)
    assert last.path in str(error.value)
    assert last.old in str(error.value)
    assert {path: path.read_text() for path in tmp_path.rglob("*.py")} == before


@pytest.mark.parametrize("text, found", [("", 0), ("ab", 1), ("ab ab ab", 3)])
def test_a_different_number_of_occurrences_stops(adaptations, text, found):
    replacement = adaptations.Replacement("some/file.py", "ab", "x", count=2)
    with pytest.raises(adaptations.AdaptationError, match=f"some/file.py.*found it {found} time"):
        adaptations.replace_exactly(text, replacement)


def test_missing_file_stops(adaptations, tmp_path):
    with pytest.raises(adaptations.AdaptationError, match="the file is missing"):
        adaptations.adapt_source(tmp_path)


def test_missing_operators_fail_on_use_only(adaptations):
    namespace = {}
    exec(adaptations.MISSING_OPS_SOURCE, namespace)
    ops = namespace["MissingOps"]()
    with pytest.raises(NotImplementedError, match="_C.box_iou_rotated is needed here"):
        ops.box_iou_rotated(1, 2)


def test_build_stops_on_an_unexpected_source(tmp_path):
    """The command itself, on an archive that is not Detectron2 0.6."""
    source = tmp_path / "other-1.0"
    (source / "detectron2").mkdir(parents=True)
    with tarfile.open(tmp_path / "other-1.0.tar.gz", "w:gz") as tar:
        tar.add(source, source.name)
    done = subprocess.run(
        [sys.executable, str(INSTALL_DIR / "build_detectron2.py")]
        + ["--archive", str(tmp_path / "other-1.0.tar.gz"), "--output", str(tmp_path / "wheels")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "The source of Detectron2 is not as expected" in done.stderr
    assert "detectron2/layers/deform_conv.py" in done.stderr
    assert not (tmp_path / "wheels").exists()
