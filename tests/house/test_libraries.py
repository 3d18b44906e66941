"""What the built libraries link, export and leave alone."""

import re
import subprocess
import sys

import pytest

LIBRARIES = ["libebbtide_core.so", "libebbtide.so"]
# What an allocator would have to take over to interpose on a process.
ALLOCATION = ["malloc", "free", "calloc", "realloc", "posix_memalign", "aligned_alloc", "_Znwm", "_Znam", "_ZdlPv", "_ZdaPv", "_ZdlPvm"]


def module(build_dir):
    found = sorted((build_dir / "python" / "ebbtide").glob("_ebbtide*.so"))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(params=[*LIBRARIES, "_ebbtide"])
def library(request, build_dir):
    return module(build_dir) if request.param == "_ebbtide" else build_dir / request.param


def test_links_nothing_of_cuda_and_no_allocator(library, run):
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", library))
    assert "libc.so.6" in needed, "readelf was not understood"
    assert [name for name in needed if re.search(r"cuda|nvidia|nvToolsExt|jemalloc|tcmalloc", name)] == []


def test_core_needs_no_torch(build_dir, run):
    needed = run("readelf", "--dynamic", build_dir / "libebbtide_core.so")
    assert not re.search(r"NEEDED.*(torch|c10|python)", needed)


@pytest.mark.parametrize("name", LIBRARIES)
def test_exports_only_ebbtide(name, build_dir, run):
    exported = run("nm", "--dynamic", "--defined-only", "--demangle", "--format=just-symbols", build_dir / name).splitlines()
    assert exported, "a library without exports serves nobody"
    allowed = re.compile(r"((vtable|VTT|typeinfo|typeinfo name) for |(non-virtual|virtual) thunk to )?ebbtide::")
    assert [symbol for symbol in exported if not allowed.match(symbol)] == []


def test_the_module_defines_no_allocation_function(build_dir, run):
    exported = run("nm", "--dynamic", "--defined-only", "--format=just-symbols", module(build_dir)).split()
    assert "PyInit__ebbtide" in exported
    assert set(exported) & set(ALLOCATION) == set()


@pytest.mark.parametrize("name", LIBRARIES)
def test_is_never_unloaded(name, build_dir, run):
    assert "NODELETE" in run("readelf", "--dynamic", build_dir / name)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_process_keeps_its_malloc(name, build_dir):
    """Loaded with RTLD_GLOBAL, where any malloc or operator new in it would be found by those who look from then on; and code that
    bound before goes on with what it had."""
    program = f"""
import ctypes, sys
if {name == "libebbtide.so"}:
    import torch  # its libraries must be there first, and bring what they bring
ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)
libc = ctypes.CDLL(None)
libc.dlsym.restype, libc.dlsym.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
def addresses():
    return {{name: libc.dlsym(None, name.encode()) for name in {ALLOCATION}}}
before = addresses()
assert all(before.values()), before
ctypes.CDLL({str(build_dir / name)!r}, ctypes.RTLD_GLOBAL)
assert addresses() == before
"""
    result = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
