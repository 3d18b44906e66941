"""One process of the demo or of compare.py, asked a word at a time over its stdin and answering with a line of JSON each."""

import json
import os
import subprocess
import tempfile

from cli import BadInput


class Died(Exception):
    """The process ended without an answer. `code` as subprocess gives it: -9 for SIGKILL."""

    def __init__(self, name: str, code: int, messages: str):
        super().__init__(f"{name} ended with exit code {code}" + (f":\n{messages}" if messages else ""))
        self.code = code


class Contender:
    """Starts at once and computes only while asked. Killed at the end of the `with` block if it has not finished by then."""

    def __init__(self, name: str, command: list[str], **environment: str):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        # glibc's moving threshold keeps freed blocks of up to 32 MiB: a memory limit would measure malloc, not the contenders.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"} | environment
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, bufsize=1, env=environment
        )

    def wait_ready(self) -> dict:
        return self._answer()

    def ask(self, word: str) -> dict:
        """Errors: Died; BadInput when the process refused its input in one line."""
        try:
            self._process.stdin.write(word + "\n")
        except BrokenPipeError:
            pass  # it has died: the missing answer tells how
        return self._answer()

    def finish(self) -> dict:
        """Its last answer, once it has ended well. Errors: as ask."""
        answer = self.ask("finish")
        code = self._process.wait(timeout=120)
        if code != 0:
            raise Died(self.name, code, self.messages())
        return answer

    def messages(self) -> str:
        """What it has said on stderr."""
        self._errors.seek(0)
        return self._errors.read().strip()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        if code == 2:
            raise BadInput(f"{self.name}: {(self.messages().splitlines() or ['bad input'])[-1]}")
        raise Died(self.name, code, self.messages())

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            try:
                stream.close()
            except BrokenPipeError:
                pass
