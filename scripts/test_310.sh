#!/usr/bin/env bash
# What runs on Python 3.10, the Python of JetPack 6: the package without an engine, as ONNX Runtime 1.25 has no wheels
# for it. Every module that needs no engine and no torch is imported, and the tests run that need neither.
#
#     scripts/test_310.sh [PYTHON]        default: python3.10
set -euo pipefail
python=${1:-python3.10}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/env"
export PYTHONPATH= CI=1  # so that Hypothesis sets no deadline
mkdir "$work/source"  # pip would leave build/ in the checkout, and take what lies there from before
git ls-files -z --cached --others --exclude-standard -- ppd pyproject.toml README.md LICENSE |
  tar --null --files-from=- -cf - | tar -C "$work/source" -xf -
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$work/source" pytest
rooms=(ppd.train ppd.serve ppd.runtime.engines ppd.cli.plot ppd.export ppd.models ppd.build ppd.torch_engine)
cp scripts/import_all.py "$work"
(cd "$work" && env/bin/python import_all.py env "${rooms[@]}" && env/bin/ppd targets >/dev/null && env/bin/ppd doctor)
"$work/env/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hypothesis
# The fixtures of tests/conftest.py export a model, so that these go without.
"$work/env/bin/python" -m pytest --noconftest -p no:cacheprovider -o addopts= -q \
  --deselect tests/planning/test_measured_curves.py::test_the_estimate_is_described_and_kept \
  --deselect tests/runtime/test_options.py::test_threads_of_numpy \
  --deselect tests/test_doctor.py::test_an_onnxruntime_that_is_too_old_would_not_run \
  --deselect tests/test_doctor.py::test_it_works_without_anything_but_the_command_line \
  tests/planning/test_{choose,measured_curves,roofline,search}.py \
  tests/runtime/test_{generation,options,result,session,text,verify}.py tests/runtime/drafters/test_{text_index,worth}.py \
  tests/templates/test_renderer.py \
  tests/test_{board,doctor,documents,extras,locks,measures,ngrams,question_files,remedies,staged_folder,targets}.py \
  tests/test_{terminal_picture,tree,tree_rows}.py
