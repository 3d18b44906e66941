"""A fresh control group with a memory limit, for one process; cgroup v1 or v2."""

import os
from pathlib import Path

from cli import BadInput, format_bytes


class MemoryLimit:
    """A context manager around the group: made on entry, gone on exit, when its processes have ended. With `swap` what is over the limit may be swapped.

    Errors: BadInput where the process may not make one, with the reason.
    """

    def __init__(self, limit_bytes: int, process: Path = Path("/proc/self"), swap: bool = False):
        self.limit_bytes, self._swap = limit_bytes, swap
        self._parent, self._is_v2 = _parent_group(process)
        self._group = self._parent / f"ebbtide-demo-{os.getpid()}"

    def __enter__(self) -> "MemoryLimit":
        try:
            self._group.mkdir()
            if self._is_v2:
                self._write("memory.max", self.limit_bytes)
                self._write("memory.swap.max", "max" if self._swap else 0, optional=True)
            else:
                self._write("memory.limit_in_bytes", self.limit_bytes)
                if not self._swap:
                    self._write("memory.memsw.limit_in_bytes", self.limit_bytes, optional=True)
        except OSError as error:
            self.__exit__()
            raise BadInput(
                f"--memory {format_bytes(self.limit_bytes)}: no control group under {self._parent}: {error.strerror}"
            ) from None
        return self

    def __exit__(self, *_) -> None:
        if self._group.exists():
            self._group.rmdir()

    def wrap(self, command: list[str]) -> list[str]:
        """The command that enters the group and then becomes `command`: from its first allocation all is counted."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._group / "cgroup.procs"), *command]

    def killed_processes(self) -> int:
        """How many processes the kernel has killed in this group for want of memory."""
        events = self._group / ("memory.events" if self._is_v2 else "memory.oom_control")
        counts = dict(line.split() for line in events.read_text().splitlines())
        return int(counts.get("oom_kill", 0))

    def _write(self, file: str, value: int | str, optional: bool = False) -> None:
        path = self._group / file
        if path.exists() or not optional:  # without swap accounting there is no swap to limit
            path.write_text(str(value))


def _parent_group(process: Path) -> tuple[Path, bool]:
    """The group to make ours in, and whether it is v2: the nearest above this process that hands out the memory controller."""
    if os.geteuid() != 0:
        raise BadInput("--memory needs root, to make a control group")
    own = dict(line.split(":", 2)[1:] for line in (process / "cgroup").read_text().splitlines())
    for mount in (line.split() for line in (process / "mounts").read_text().splitlines()):
        root, kind, options = Path(mount[1]), mount[2], mount[3].split(",")
        if kind == "cgroup" and "memory" in options:
            inside = root / own.get("memory", "/").lstrip("/")
            return (inside if inside.is_dir() else root), False  # in a container the path may be the host's
        if kind == "cgroup2" and "memory" in (root / "cgroup.controllers").read_text().split():
            group = root / own.get("", "/").lstrip("/")
            for candidate in (group, *group.parents):
                control = candidate / "cgroup.subtree_control"
                if control.exists() and "memory" in control.read_text().split():
                    return candidate, True
            raise BadInput(
                f"--memory: no control group above this process hands out memory; echo +memory > {root}/cgroup.subtree_control"
            )
    raise BadInput("--memory: this system has no memory control groups (neither cgroup v1 nor v2 is mounted with memory)")
