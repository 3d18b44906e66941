"""Older headers than those here: what they do not name, the sources name themselves."""

import re

# Of io_uring, and newer than liburing 2.2, the oldest that nvme/CMakeLists.txt takes.
NEWER = ["IORING_SETUP_SINGLE_ISSUER", "IORING_SETUP_DEFER_TASKRUN"]


def test_liburing_2_2_is_enough(root, build_dir, tmp_path, run):
    cache = (build_dir / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.MULTILINE)[1]
    old = tmp_path / "old_liburing.h"
    old.write_text("#include <liburing.h>\n" + "".join(f"#undef {name}\n" for name in NEWER))
    run(compiler, "-std=c++20", "-fsyntax-only", "-I", build_dir / "include", "-include", old, root / "nvme" / "uring_queue.cpp")
