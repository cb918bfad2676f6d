"""Nothing that comes from outside can run code (docs/INSTALL.md, "What is trusted")."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    ROOT / "train_net.py",
    *(path for name in ("contrastmask", "tools", "demo") for path in (ROOT / name).rglob("*.py")),
]
# Calls that run code or a shell: never.
NEVER = {
    *("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "subprocess.getoutput"),
}
# Calls that need an argument to be safe; None: any value, because it is checked where it is given.
NEEDS = {
    "torch.load": ("weights_only", None),
    "cfg.merge_from_file": ("allow_unsafe", False),
}


def calls(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), keywords


def unsafe_calls(source):
    found = []
    for name, keywords in calls(source):
        key, value = NEEDS.get(name, ("", None))
        missing = key and (key not in keywords or value not in (None, keywords[key]))
        if name in NEVER or missing or "shell" in keywords or "allow_pickle" in keywords:
            found.append(name)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "os.system(x)",
        "eval(x)",
        "yaml.load(f, Loader)",
        "subprocess.run(x, shell=True)",
        "torch.load(f)",
        "cfg.merge_from_file(f)",
        "cfg.merge_from_file(f, allow_unsafe=True)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_unsafe_calls_are_seen(source):
    assert unsafe_calls(source)


def test_no_unsafe_calls():
    assert len(SOURCES) > 60
    found = {str(x): unsafe_calls(x.read_text(encoding="utf-8")) for x in SOURCES}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("name", ["constraints.txt", "build.txt", "detectron2.txt"])
def test_all_requirements_are_pinned_with_hashes(name):
    text = (ROOT / "requirements" / name).read_text()
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    requirements = [line for line in text.splitlines() if line.strip()]
    assert requirements
    for line in requirements:
        assert re.match(r"[\w.\-]+==[\w.+]+( ;[^-]*)? .*--hash=sha256:[0-9a-f]{64}", line), line
