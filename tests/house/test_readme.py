"""README's commands and snippets run as they are written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from readme import Block, code_blocks, cpp_program

README = Path(__file__).parents[2] / "README.md"
BLOCKS = code_blocks(README.read_text()) if README.exists() else []


def run_block(block: Block, root, build_dir, folder, environment) -> None:
    if block.language == "python":
        command, cwd = [sys.executable, "-c", block.given + block.code], folder
    elif block.language == "sh":
        command, cwd = ["bash", "-euo", "pipefail", "-c", block.given + block.code], root
    elif block.language == "cpp":
        (folder / "snippet.cpp").write_text(cpp_program(block))
        (folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.24)\nproject(readme LANGUAGES CXX)\nfind_package(Ebbtide REQUIRED COMPONENTS ebbtide)\n"
            "add_executable(snippet snippet.cpp)\ntarget_link_libraries(snippet PRIVATE Ebbtide::ebbtide)\n"
        )
        options = f"-DCMAKE_PREFIX_PATH={build_dir} -DPython_EXECUTABLE={sys.executable} -DCMAKE_BUILD_TYPE=Release"
        command, cwd = ["bash", "-ec", f"cmake -S . -B build {options} && cmake --build build && ./build/snippet"], folder
    elif block.language == "cmake":
        (folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.24)\nproject(readme LANGUAGES CXX)\nfile(WRITE train.cpp)\nadd_executable(train train.cpp)\n" + block.given + block.code
        )
        command, cwd = ["cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={build_dir}", f"-DPython_EXECUTABLE={sys.executable}"], folder
    else:
        pytest.fail(f"README line {block.line}: no way to run {block.language}: add one here, or mark the block `<!-- not run: REASON -->`")
    result = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, f"README line {block.line}\n{result.stdout}\n{result.stderr}"


def test_readme_has_snippets_to_run():
    languages = {block.language for block in BLOCKS if not block.not_run}
    assert {"python", "cpp"} <= languages


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line{block.line}-{block.language}")
def test_readme_block(block, root, build_dir, tmp_path, compile_environment):
    if block.not_run:
        pytest.skip(f"README says: {block.not_run}")
    run_block(block, root, build_dir, tmp_path, compile_environment)


def test_blocks_are_found_with_their_comments():
    blocks = code_blocks("a\n\n<!-- not run: it takes an hour -->\n```sh\nbash x\n```\ntext\n<!-- given:\nx = 1\n-->\n```python\nprint(x)\n```\n```cpp\nint y;\n```\n")
    assert [(b.language, b.code, b.given, b.not_run) for b in blocks] == [
        ("sh", "bash x\n", "", "it takes an hour"),
        ("python", "print(x)\n", "x = 1\n", ""),
        ("cpp", "int y;\n", "", ""),
    ]


def test_a_block_that_fails_is_seen(root, build_dir, tmp_path):
    with pytest.raises(AssertionError, match="README line 7"):
        run_block(Block(7, "python", "print(undefined)\n"), root, build_dir, tmp_path, dict(os.environ))


def test_a_cpp_snippet_becomes_a_program():
    block = Block(1, "cpp", "#include <a.h>\nuse(x);\n", given="#include <b.h>\nint x = 1;\n")
    assert cpp_program(block) == "#include <b.h>\n#include <a.h>\nint main() {\nint x = 1;\nuse(x);\n}\n"
