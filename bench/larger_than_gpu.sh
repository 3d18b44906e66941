#!/usr/bin/env bash
# Trains a model whose weights, optimizer and activations together exceed the memory it may have: FSDP2 with CPU offload does not, with Ebbtide it does.
# Sets everything up first (the second time takes seconds); --help lists the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/setup.sh" --print-python)
export PYTHONPATH="$root/build/python${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" "$root/bench/larger_than_gpu.py" "$@"
