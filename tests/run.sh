#!/usr/bin/env bash
# All tests, C++ (ctest) and Python (pytest), after setting up whatever is missing. --long adds those that take minutes (sanitizers), and lets sweeps over
# seeds try all of theirs instead of ending after EBBTIDE_SWEEP_SECONDS (90). --slow-disk looks for what tests expect of a disk without having waited for
# it: requests last up to EBBTIDE_SLOW_DISK_US (5000) microseconds more and end in any order.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

while (($#)); do
  case $1 in
    --long) export EBBTIDE_LONG=1 ;;
    --slow-disk) slow_disk=1 ;;
    *)
      echo "unknown option '$1'; there are --long and --slow-disk" >&2
      exit 2
      ;;
  esac
  shift
done

python=$(bash setup.sh --print-python)
[ -z "${slow_disk:-}" ] || export LD_PRELOAD="$root/build/tests/support/libslow_disk.so"
results=build/results
rm -rf "$results" && mkdir -p "$results"

# Both always run; what they found is counted below.
status=0
"$(sed -n 's/^CMAKE_COMMAND:INTERNAL=\(.*\)cmake$/\1ctest/p' build/CMakeCache.txt)" --test-dir build --parallel 2 --output-on-failure \
  --no-tests=error --output-junit "$root/$results/ctest.xml" || status=1
"$python" -m pytest tests --junitxml "$results/pytest.xml" || status=1

"$python" tests/summary.py "$status" "$results/ctest.xml" "$results/pytest.xml"
