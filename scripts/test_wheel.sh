#!/usr/bin/env bash
# The built wheel in empty environments, far from the checkout: what a stranger gets from `pip install`.
#
#     scripts/test_wheel.sh [PYTHON]        default: python3, 3.11 or newer
#
# One environment exports (extras cpu and export, with torch), the other only runs (extra cpu).
set -euo pipefail
python=${1:-python3}
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 COLUMNS=200

step() { printf '\n== %s\n' "$*"; }
fail() { echo "test_wheel: $*" >&2; exit 1; }
says() { # PATTERN COMMAND...: it succeeds, and prints a line with the pattern
  "${@:2}" >"$work/said"
  grep -q "$1" "$work/said" || fail "${*:2} prints no line with $1"
}
environment() { # NAME EXTRAS: a new environment with the wheel and these extras
  "$python" -m venv "$work/$1"
  "$work/$1/bin/python" -m pip install --quiet --constraint "$checkout/constraints.txt" "$wheel[$2]"
}

step "build from a copy of the files that git knows"
mkdir "$work/source"
git -C "$checkout" ls-files -z --cached --others --exclude-standard -- ppd pyproject.toml README.md LICENSE |
  tar -C "$checkout" --null --files-from=- -cf - | tar -C "$work/source" -xf -
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet build
"$work/tools/bin/python" -m build --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 ||
  { tail -20 "$work/build.log" >&2; fail "the build failed"; }
wheel=$(echo "$work"/dist/*.whl)
(cd "$work/source" && find ppd -type f | sort) >"$work/expected"
"$python" -m zipfile -l "$wheel" | awk '$1 ~ /^ppd\// {print $1}' | sort >"$work/packed"
diff "$work/expected" "$work/packed" || fail "the wheel has other files than ppd/ (< is missing, > is too much)"
echo "$(basename "$wheel"): $(wc -l <"$work/packed") files, all of ppd/"
rm -r "$work/source"
mkdir "$work/elsewhere"
cd "$work/elsewhere"

step "extras cpu and export: import everything, export, generate, check"
environment exporting cpu,export
bin=$work/exporting/bin
"$bin/python" "$checkout/scripts/import_all.py" "$work/exporting" ppd.train ppd.serve ppd.runtime.engines ppd.cli.plot
version=$("$bin/python" -c 'import importlib.metadata as m; print(m.version("ppd-edge"))')
[ "$("$bin/ppd" --version)" = "ppd-edge $version" ] || fail "ppd --version is not $version"
[ "$("$bin/python" -m ppd --version)" = "ppd-edge $version" ] || fail "python -m ppd --version is not $version"
says "^tinypy " "$bin/ppd" models
says "^jetson-orin " "$bin/ppd" targets
says "^torch  *yes " "$bin/ppd" doctor
"$bin/ppd-export" --model tinypy --gpu cpu --out bundle | tail -3
"$bin/ppd" check bundle

step "extra cpu alone: the same bundle, without torch"
environment running cpu
bin=$work/running/bin
"$bin/python" "$checkout/scripts/import_all.py" "$work/running" ppd.train ppd.serve ppd.runtime.engines ppd.cli.plot \
  ppd.export ppd.models ppd.build ppd.torch_engine
says "^onnxruntime  *yes " "$bin/ppd" doctor
for package in torch onnx transformers; do
  "$bin/python" -c "import $package" 2>"$work/error" && fail "$package came with the extra cpu"
done
"$bin/ppd" generate bundle "def fibonacci(n):" --max-new-tokens 32 --stats
plain=$("$bin/ppd" generate bundle "def fibonacci(n):" --max-new-tokens 32 --plain)
drafted=$("$bin/ppd" generate bundle "def fibonacci(n):" --max-new-tokens 32 --draft always)
[ "$plain" = "$drafted" ] || fail "drafting changed the text"
"$bin/ppd" check bundle

step "what it lacks is one line with a remedy that works from the installed wheel"
status=0
"$bin/ppd-export" --model tinypy --gpu cpu --out other 2>"$work/error" || status=$?
cat "$work/error"
[ "$status" = 1 ] || fail "an export without torch ended with $status, expected 1"
grep -q 'pip install "ppd-edge\[export\]"' "$work/error" || fail "it does not name the extra"
"$bin/python" -m pip install --quiet --dry-run --constraint "$checkout/constraints.txt" "ppd-edge[plot]"
echo "the wheel passes"
