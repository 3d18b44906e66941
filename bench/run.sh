#!/usr/bin/env bash
# Benchmarks: bash bench/run.sh [PART...] --json FILE prints a table of figures and writes them.
# Sets everything up first (the second time takes seconds); --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/setup.sh" --print-python)
export PYTHONPATH="$root/build/python${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/bench/run.py" "$@"
