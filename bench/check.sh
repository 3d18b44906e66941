#!/usr/bin/env bash
# Compares two results of run.sh or compare.sh: bash bench/check.sh OLD.json NEW.json says what became slower, and fails then.
# Needs no more than Python; --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=python3
[[ ! -x $root/.venv/bin/python ]] || python=$root/.venv/bin/python
exec "$python" "$root/bench/check.py" "$@"
