#!/usr/bin/env bash
# The main job: the same GPT trained plain, with torch's checkpoint and with Ebbtide, in Python and in C++, and compared.
# Sets everything up first (the second time takes seconds); --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/setup.sh" --print-python)
export PYTHONPATH="$root/build/python${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/bench/demo.py" "$@"
