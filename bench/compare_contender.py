"""One contender of compare.py, in a process of its own: waits for a word on stdin, does that, and answers with one line of JSON.

Where its way cannot be tried here it says so in its first line, and ends.
"""

import json
import os
import sys
from pathlib import Path

import cli
import contenders
import device
import subjects
import ways
from training import Training, file_rss, peak_rss, take_turns

MOVED = {"moved_out": "d2h", "moved_in": "h2d", "disk_write": "disk_write", "disk_read": "disk_read"}


def parse_arguments():
    parser = cli.Parser(prog="compare_contender", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--contender", required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    for size in ("layers", "width", "tokens", "batch"):
        parser.add_argument(f"--{size}", type=cli.positive, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=int, help="Ebbtide's, bytes; automatic without")
    parser.add_argument("--spill", required=True)
    parser.add_argument("--peers", type=Path, default=Path())
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--device-share", type=float, help="of the GPU's memory that this process may have")
    return parser.parse_args()


class Contest(Training):
    """A training whose end tells also what was moved in its last step, and what was pinned."""

    moved: dict[str, int] = {}

    def step(self) -> dict:
        """On a GPU a step before it is not timed: it takes the memory from the device again that the others had meanwhile."""
        settled = super().step()["digest"] if self._on.device.type == "cuda" else ""
        before = self._moved()
        answer = super().step()
        answer["digest"] = settled + answer["digest"]
        after = self._moved()
        self.moved = {name: after[name] - before[name] for name in after}
        self.optimizer.zero_grad(set_to_none=True)  # the others need the memory now
        self._on.release()
        return answer

    def trace(self) -> dict:
        """The trace of a step more, which is not timed."""
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"ebbtide-trace-{os.getpid()}.json"
        self.way.store.save_trace(path, 1)
        super().step()
        trace = json.loads(path.read_text())
        path.unlink()
        return trace

    def finish(self) -> dict:
        stats = self.way.store.stats() if self.way.store else None
        pinned = self._on.pinned_bytes()
        if stats and pinned is not None:
            pinned += stats["host"]["peak_bytes"]
        more = {
            "moved": self.moved,
            "pinned_bytes": pinned,
            "host_peak_bytes": stats["host"]["peak_bytes"] if stats else None,
            "spill_peak_bytes": stats["spill"]["peak_bytes"] if stats else None,
            "note": self.way.note,
        }
        return super().finish() | more

    def _moved(self) -> dict[str, int]:
        """Bytes so far: by Ebbtide's own account, else what the process has asked of disks, as the kernel counts."""
        if self.way.store:
            stats = self.way.store.stats()
            return {name: stats[key]["bytes"] for name, key in MOVED.items()}
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return {"disk_write": int(counts["write_bytes"]), "disk_read": int(counts["read_bytes"])}


def contest(arguments, entry: contenders.Entry) -> Contest:
    """Errors: Unavailable, BadInput."""
    on = device.StepOn(arguments.device, arguments.deterministic, autocast=subjects.subject(arguments.model).mixed)
    if arguments.device_share:
        on.allow(arguments.device_share)
    sizes = subjects.Sizes(arguments.layers, arguments.width, arguments.tokens, arguments.batch)
    model, batches, optimizer = subjects.training_parts(arguments.model, sizes, arguments.seed, on, entry.fused)
    where = ways.Where(arguments.device, arguments.budget, arguments.spill, arguments.peers)
    return Contest(model, batches, optimizer, on, entry.way(model, where))


def main() -> int:
    arguments = parse_arguments()
    entry = contenders.table([0.05, 0.1, 0.2, 0.3, 0.5, contenders.AUTOMATIC] + shares_in(arguments.contender))[arguments.contender]
    try:
        training = contest(arguments, entry)
    except ways.Unavailable as reason:
        print(json.dumps({"ready": False, "reason": str(reason)}), flush=True)
        return 0
    weights = sum(parameter.nbytes for parameter in training.model.parameters())
    trained = sum(parameter.nbytes for parameter in training.model.parameters() if parameter.requires_grad)
    facts = {"weights_bytes": weights, "trained_bytes": trained, "rss_bytes": peak_rss(), "anonymous_bytes": peak_rss() - file_rss()}
    take_turns(training, facts, trace=training.trace)
    return 0


def shares_in(name: str) -> list[float]:
    """The budget that a name such as ebbtide_15 asks for."""
    last = name.rpartition("_")[2]
    return [float(last) / 100] if last.replace(".", "", 1).isdigit() else []


if __name__ == "__main__":
    cli.run("compare_contender", main)
