#!/usr/bin/env bash
# Tests of pinned_pool/ and nvme/ as on a 64-bit ARM machine with pages of 64 KiB: cross-compiled, and run under qemu-user. Takes minutes. Needs
# Debian's g++-aarch64-linux-gnu and qemu-user; libraries for arm64 are downloaded and unpacked into build-aarch64/sysroot, nothing is installed.
#
#   bash tests/aarch64.sh [PAGE_BYTES]      4096, 16384 or 65536 (the default)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
pages=${1:-65536}
build=build-aarch64
sysroot=$root/$build/sysroot
packages=(nlohmann-json3-dev libhwloc-dev libhwloc15 liburing-dev liburing2 libxxhash-dev libxxhash0 libgtest-dev libgmock-dev libudev1 libcap2 libltdl7)

for tool in aarch64-linux-gnu-g++ qemu-aarch64 dpkg-deb apt-get; do
  command -v $tool >/dev/null || {
    echo "there is no $tool here: apt-get install g++-aarch64-linux-gnu qemu-user, on Debian or Ubuntu" >&2
    exit 2
  }
done

# apt's own lists are left alone: it is asked with lists of its own, which hold what it offers for arm64.
if [[ ! -e $sysroot/complete ]]; then
  apt=$(mktemp -d)
  chmod 755 "$apt" # apt downloads as its own user
  mkdir -p "$apt"/{lists/partial,cache/archives/partial,download} "$sysroot"
  : >"$apt/status"
  options=(-q -o "APT::Architecture=arm64" -o "APT::Architectures=arm64" -o "Dir::State::Lists=$apt/lists" -o "Dir::State::Status=$apt/status"
    -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=$(id -un)")
  apt-get "${options[@]}" update >"$apt/log" 2>&1 || true # a source without arm64 makes it fail; what counts are the packages
  (cd "$apt/download" && apt-get "${options[@]}" download "${packages[@]}") || { cat "$apt/log"; exit 1; }
  for package in "$apt"/download/*.deb; do dpkg-deb --extract "$package" "$sysroot"; done
  touch "$sysroot/complete"
  rm -rf "$apt"
fi

export CPATH=$sysroot/usr/include/aarch64-linux-gnu # headers of this architecture alone, which the compiler seeks elsewhere
launcher=()
! command -v ccache >/dev/null || launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
cmake -S . -B $build -G Ninja -DCMAKE_TOOLCHAIN_FILE="$root/cmake/aarch64-linux-gnu.cmake" -DCMAKE_BUILD_TYPE=Release -DEBBTIDE_TORCH=OFF \
  -DEBBTIDE_BENCH=OFF -DEBBTIDE_SYSROOT="$sysroot" -DEBBTIDE_PAGE_BYTES="$pages" "${launcher[@]}"
cmake --build $build --target pinned_pool_test pinned_pool_fork_test nvme_test --parallel "$(nproc)"
# Out are: what starts a program anew (the host would run it, and cannot), what asks mincore() (the emulator answers for the host's smaller pages, and
# writes beyond the answer's end), what rests on madvise() (to the emulator it is advice: nothing is made present, or kept from a fork), and other
# machines' topologies (hwloc reads them by a plugin that is not unpacked here).
ctest --test-dir $build/tests/pinned_pool --output-on-failure --exclude-regex 'DeathTest|PrefaultTest|IsAlignedPresent|CgroupTest|DmaTargetsAreNotInherited|TwoNodes|NearNode|Topology|RefusedBind'
# And what needs direct I/O: the emulator's statx() says that there is none, so all files are buffered.
ctest --test-dir $build/tests/nvme --output-on-failure --exclude-regex 'NoRoomBehindReservedBytes|AThrottledFolder'
