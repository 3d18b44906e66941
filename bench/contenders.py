"""Who takes part in compare.sh: a line in `table` each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cli
import peers
import ways

AUTOMATIC = "auto"


@dataclass(frozen=True)
class Entry:
    """`reference` names the contender whose losses and gradients must be this one's, to the last bit."""

    name: str
    label: str
    way: Callable
    family: str  # of the curve in the picture
    reference: str = "plain"
    fused: bool = False
    share: float | str | None = None  # Ebbtide's budget, of what plain saves
    swaps: bool = False  # needs swap space, and a memory limit that makes it swap


def table(shares: list[float | str]) -> dict[str, Entry]:
    """`shares`: Ebbtide's budgets."""
    entries = [
        Entry("plain", "plain", ways.plain, "plain"),
        Entry("plain_again", "plain, a second process", ways.plain, "plain"),
        Entry("checkpoint", "checkpoint, each block", ways.checkpoint, "checkpoint"),
        Entry("selective", "checkpoint, op list", ways.selective, "checkpoint, op list"),
        Entry("save_on_cpu", "save_on_cpu", ways.save_on_cpu, "save_on_cpu"),
        Entry("checkpoint_save_on_cpu", "checkpoint + save_on_cpu", ways.checkpoint_save_on_cpu, "checkpoint + save_on_cpu"),
        Entry("torchtune", "torchtune", peers.torchtune, "torchtune"),
        Entry("trl", "TRL", peers.trl, "TRL"),
        Entry("transformers", "transformers, offload", peers.transformers, "transformers"),
        Entry("trainstream", "TrainStream", peers.trainstream, "TrainStream"),
        Entry("axolotl_disk", "axolotl, disk", peers.axolotl_disk, "axolotl"),
        Entry("swap", "plain on swap", ways.plain, "swap", swaps=True),
    ]
    entries += [Entry(f"ebbtide_{named(share)}", f"Ebbtide {label(share)}", ways.ebbtide, "Ebbtide", share=share) for share in shares]
    entries += [
        Entry("ebbtide_regions_10", "Ebbtide 10%, regions", ways.ebbtide_regions, "Ebbtide, regions", share=0.1),
        Entry("fused", "plain, fused ops", ways.plain, "fused ops", reference="fused", fused=True),
        Entry("fused_ebbtide_30", "Ebbtide 30%, fused ops", ways.ebbtide, "Ebbtide, fused ops", reference="fused", fused=True, share=0.3),
        Entry("compiled", "plain, compiled blocks", ways.compiled, "compiled", reference="compiled"),
    ]
    for budget in ways.COMPILE_BUDGETS:
        way = partial(ways.compiled_within, budget)
        entries.append(
            Entry(f"compile_budget_{named(budget)}", f"compiled, memory budget {budget}", way, "compiled, memory budget", reference="compiled")
        )
    entries.append(
        Entry("compiled_ebbtide_30", "Ebbtide 30%, compiled", ways.compiled_ebbtide, "Ebbtide, compiled", reference="compiled", share=0.3)
    )
    return {entry.name: entry for entry in entries}


def named(share: float | str) -> str:
    return share if share == AUTOMATIC else f"{100 * share:g}"


def label(share: float | str) -> str:
    return "automatic" if share == AUTOMATIC else f"{100 * share:g}%"


def budgets(words: str) -> list[float | str]:
    """Shares in "5,10,auto": what is saved, in per cent."""
    found = []
    for word in words.split(","):
        try:
            share = AUTOMATIC if word == AUTOMATIC else float(word.removesuffix("%")) / 100
        except ValueError:
            share = None
        if share is None or share != AUTOMATIC and not 0 <= share <= 1:
            raise cli.BadInput(f"--budgets {words}: {word!r} is neither a per cent nor {AUTOMATIC}")
        found.append(share)
    return found
