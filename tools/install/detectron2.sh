#!/usr/bin/env bash
# Install Detectron2 0.6 without its C++ part, which needs no compiler, into the environment of PYTHON:
#     tools/install/detectron2.sh [PYTHON]
# Downloads the source (requirements/detectron2.txt), applies detectron2-0.6.patch and installs the
# result. The environment must have pip, torch (the source's setup.py imports it) and setuptools 70.1 to 80.
set -euo pipefail
python=${1:-python}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

pip=("$python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" download --require-hashes --no-deps --no-binary :all: --no-build-isolation --use-pep517 \
  --dest "$build" --requirement "$here/../../requirements/detectron2.txt"
mkdir "$build/source"
tar -xzf "$build"/*.tar.gz --strip-components=1 -C "$build/source"
# GIT_DIR: inside a repository, git apply skips files outside of it without a word.
(cd "$build/source" && GIT_DIR=/dev/null git apply "$here/detectron2-0.6.patch")
"${pip[@]}" install --no-build-isolation --use-pep517 "$build/source"
