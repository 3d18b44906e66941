#!/usr/bin/env bash
# Ebbtide beside plain torch, torch's own ways and what other projects do: bash bench/compare.sh --quick --json FILE.
# Sets everything up first (the second time takes seconds); --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/setup.sh" --print-python)
export PYTHONPATH="$root/build/python${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/bench/compare.py" "$@"
