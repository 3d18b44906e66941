"""What the repository's files must not hold."""

import re

# Written in pieces, so that this file does not hold them.
MACHINE_PATHS = re.compile("|".join(["/" + r"work/\w", "/" + r"home/[a-z]", "/" + r"root/\w", "/" + r"Users/\w", "/" + r"tmp/build"]))


def repository_files(root, run):
    if (root / ".git").exists():
        names = run("git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
        return [root / name for name in names if name and (root / name).is_file()]
    skipped = re.compile(r"^(\.venv|\.cache|build.*)$|^\.git")
    return [f for f in root.rglob("*") if f.is_file() and not any(skipped.match(part) for part in f.relative_to(root).parts[:-1])]


def test_no_path_of_one_machine(root, run):
    found = []
    files = repository_files(root, run)
    assert root / "CMakeLists.txt" in files
    for file in files:
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATHS.search(line) or str(root) in line:
                found.append(f"{file.relative_to(root)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_build_products_are_ignored(root, run):
    if not (root / ".git").exists():
        return
    tracked = run("git", "-C", root, "ls-files").splitlines()
    assert [name for name in tracked if re.match(r"(\.venv|\.cache|build(-\w+)?)/|.*\.(so|o|pyc)$", name)] == []
