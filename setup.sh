#!/usr/bin/env bash
# Sets up everything from a fresh clone: system packages, a Python environment with torch, the build in build/, the Python package.
# Run again, it does only what is missing or has changed; nothing to do takes seconds.
#
#   bash setup.sh                  set up, and say how to go on
#   bash setup.sh --print-python   set up, and print the interpreter to use as the only line on stdout
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
torch_version=2.11.0
packages=(g++ make cmake ninja-build pkg-config ccache binutils ca-certificates python3-venv python3-dev liburing-dev libhwloc-dev
  libhwloc-plugins # reads the topologies of other machines that tests bring
  libxxhash-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev libbenchmark-dev
  fio) # the measure of bench/run.sh nvme

exec 3>&1 1>&2 # progress goes to stderr; stdout (3) is for the answer alone

step() { printf '[setup] %s\n' "$*"; }
die() {
  printf '[setup] failed: %s\n' "$*"
  exit 1
}

print_python=
case "${1-}" in
  "") ;;
  --print-python) print_python=1 ;;
  -h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&3
    exit 0
    ;;
  *) die "unknown option '$1' (there is --print-python and --help)" ;;
esac
mkdir -p .cache build
exec 9>.cache/setup.lock
flock -n 9 || { step "another setup.sh is at work here: waiting for it" && flock 9; }

# --- system packages

missing_packages() {
  local package
  for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || printf '%s ' "$package"
  done
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  missing=$(missing_packages)
  if [[ $missing && $EUID -ne 0 ]]; then
    die "please run once, then this again: sudo apt-get update && sudo apt-get install $missing"
  elif [[ $missing ]]; then
    step "system packages: $missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q || step "apt-get update had errors; trying with the package lists there are"
    # shellcheck disable=SC2086 # a list of words
    apt-get install -qy --no-install-recommends $missing 9>&- ||
      die "apt-get could not install: $missing. Is the network there, and 'universe' enabled on Ubuntu?"
  fi
else
  step "not a Debian or Ubuntu: taking for granted what these packages hold there: ${packages[*]}"
fi

# --- Python with torch

# What torch the interpreter $1 has, without loading it; nothing if none.
torch_of() {
  "$1" -I -c 'import importlib.metadata as m; print(m.version("torch").split("+")[0])' 2>/dev/null || true
}
at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

python=$root/.venv/bin/python
active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [[ $active && $(readlink -f "$active") != "$(readlink -f "$root/.venv")" ]]; then
  active_torch=$(torch_of "$active/bin/python")
  if [[ -z $active_torch ]]; then
    step "the active environment has no torch: using .venv"
  elif ! "$active/bin/python" -m pip --version >/dev/null 2>&1; then
    step "the active environment has torch $active_torch but no pip (\`python -m ensurepip\` brings it): using .venv"
  elif at_least "${torch_version%.*}" "$active_torch"; then
    python=$active/bin/python
    step "using the active environment, with torch $active_torch: $active"
  else
    step "the active environment's torch $active_torch is older than ${torch_version%.*}: using .venv"
  fi
fi

if [[ $python == "$root/.venv/bin/python" ]]; then
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    step "a Python environment in .venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "Python 3.10 or newer is needed; python3 is $(python3 --version 2>&1)"
    python3 -m venv --clear .venv || die "python3 cannot make a virtual environment: install python3-venv"
  fi
  if [[ $(torch_of "$python") != "$torch_version" ]]; then
    step "torch $torch_version (some GB to download and unpack: this takes minutes)"
    "$python" -m pip install --disable-pip-version-check "torch==$torch_version" ||
      die "pip could not install torch $torch_version: is the network there, and 8 GB free in $root? Or activate an environment that has torch"
  fi
fi

# Asked of the metadata: `pip install` with nothing to do would take seconds.
tools_present() {
  "$python" -I - requirements-dev.txt <<'PY'
import importlib.metadata, re, sys
for line in open(sys.argv[1]):
    if line.strip() and not line.startswith("#"):
        importlib.metadata.version(re.match(r"[\w-]+", line)[0])
PY
}
if ! tools_present 2>/dev/null; then
  step "Python tools: $(grep -v '^#' requirements-dev.txt | tr '\n' ' ')"
  "$python" -m pip install --disable-pip-version-check -q -r requirements-dev.txt ||
    die "pip could not install requirements-dev.txt into $python's environment: is the network there?"
fi
bin=$(dirname "$python")
cmake=$(command -v cmake || true)
if [[ -z $cmake ]] || ! at_least 3.24 "$("$cmake" --version | sed -n 's/^cmake version //p')"; then
  cmake=$bin/cmake
  [[ -x $cmake ]] || { step "CMake 3.24 or newer, from pip" && "$python" -m pip install --disable-pip-version-check -q cmake; } ||
    die "CMake 3.24 or newer is needed, and pip could not install it"
fi

# --- jemalloc's source

archive=.cache/jemalloc-5.3.0.tar.bz2
archive_sha256=$(sed -n 's/^set(_jemalloc_sha256 \([0-9a-f]*\))$/\1/p' cmake/jemalloc.cmake)
archive_right() { echo "$archive_sha256  $1" | sha256sum --check --status 2>/dev/null; }

# The distribution's source package holds the upstream archive byte for byte. The machine's own package sources are asked for source packages,
# in a folder of their own, so that nothing of the system changes and no root is needed.
archive_from_distribution() {
  command -v apt-get >/dev/null || return 1
  local apt list options
  apt=$(mktemp -d)
  chmod 755 "$apt" # apt downloads as its own user
  mkdir -p "$apt"/{sources.d,lists/partial,cache/archives/partial,download}
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ ! -f $list ]] || sed -n 's/^deb /deb-src /p' "$list" >"$apt/sources.d/$(basename "$list" .list).list"
  done
  for list in /etc/apt/sources.list.d/*.sources; do
    [[ ! -f $list ]] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$apt/sources.d/$(basename "$list")"
  done
  options=(-q -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$apt/sources.d" -o "Dir::State::Lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=$(id -un)" -o "Acquire::Retries=1")
  (
    cd "$apt/download"
    apt-get "${options[@]}" update
    apt-get "${options[@]}" source --download-only jemalloc
  ) >"$apt/log" 2>&1 || true # a source without source packages makes `update` fail; what counts is the archive
  local found
  found=$(find "$apt/download" -name 'jemalloc_*.orig.tar.bz2' -print -quit)
  local result=1
  if [[ $found ]] && archive_right "$found"; then
    mv "$found" "$archive"
    result=0
  fi
  rm -rf "$apt"
  return $result
}

if ! archive_right "$archive"; then
  rm -f "$archive"
  step "jemalloc's source archive"
  archive_from_distribution || step "the distribution does not have jemalloc 5.3.0's source: the build takes it from upstream"
fi

# --- build

step "build in build/"
configure=(--preset release "-DPython_EXECUTABLE=$python" -DCMAKE_INSTALL_LIBDIR=lib
  "-DEBBTIDE_TORCH_ROOT=$("$python" -I -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')")
if command -v ccache >/dev/null; then
  configure+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  export CCACHE_BASEDIR=$root # paths count relative to the clone: build-wheel/, which pip makes, then finds what build/ has compiled
fi
"$cmake" "${configure[@]}" >build/configure.log 2>&1 || {
  cat build/configure.log
  die "CMake's configuration: the reason is above. If build/ was made by hand or by another CMake, remove it"
}
if ! [[ -f $archive ]] && archive_right build/jemalloc-5.3.0.tar.bz2; then
  cp build/jemalloc-5.3.0.tar.bz2 "$archive" # CMake took it from upstream; the next build need not
fi
# A compiler with torch's headers takes 1.2 GB: no more of them than memory holds.
jobs=$(awk -v cores="$(nproc)" '/^MemAvailable/ { fit = int($2 / 1500000); print fit < 1 ? 1 : fit < cores ? fit : cores }' /proc/meminfo)
"$cmake" --build build --parallel "$jobs" || die "the build: the first error above is the reason"

# --- the Python package

# Of all that is installed; a link in the build tree counts as the file that it points to.
installed_hash() {
  { find -L build/python/ebbtide build/include -name '*.h' -o -name '*.py' -o -name '*.so' && ls build/libebbtide*.so pyproject.toml; } |
    LC_ALL=C sort | { echo "$python" && tr '\n' '\0' | xargs -0 sha256sum; } | sha256sum
}
hash=$(installed_hash)
if [[ $(cat build/installed 2>/dev/null) != "$hash" ]] ||
  ! "$python" -I -c 'import importlib.metadata as m; m.version("ebbtide")' 2>/dev/null; then
  step "the Python package, into $(dirname "$bin")"
  # Its own build folder: what pip builds by itself must not find these settings in its cache.
  "$python" -m pip install --disable-pip-version-check -q --no-build-isolation --no-deps --force-reinstall . \
    --config-settings=build-dir=build/pack --config-settings="cmake.define.EBBTIDE_PACK_BUILD_TREE=$root/build" ||
    die "pip could not install the package; the build tree can be used all the same: PYTHONPATH=$root/build/python"
  echo "$hash" >build/installed
fi

if [[ $print_python ]]; then
  echo "$python" >&3
else
  step "ready. The interpreter with ebbtide is $python; all tests: bash tests/run.sh; the demo: bash bench/demo.sh"
fi
