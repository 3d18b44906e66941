"""`python -m ebbtide plan PROFILE`: what a step would take and hold with other budgets, or on another machine."""

import json

from . import _ebbtide
from ._errors import ConfigError

_SHARES = (100, 75, 50, 30, 20, 10, 5, 0)  # % of what the model saves
_SPEEDS = ("link_bandwidth", "disk_write", "disk_read")
_BUDGETS = ("device_budget", "host_budget", "spill_budget")


def add_to(commands):
    parser = commands.add_parser(
        "plan",
        help="predict the time and the memory of a step for any budget",
        description="Predicts what a step would take and hold with other budgets or on another machine, and says what would be kept, moved and computed again. "
        "PROFILE is what store.save_profile(path) wrote. What is not given is as it was there. Sizes: 4096, 512MiB, 2GiB, 1.5TB; speeds: 25GB/s.",
    )
    parser.add_argument("profile", metavar="PROFILE")
    parser.add_argument("--device-budget", metavar="SIZE", help="a size, or a share such as 30%% of what the model saves; without it: a table of shares")
    parser.add_argument("--host-budget", metavar="SIZE", help="pinned host memory for the tensors of accelerators")
    parser.add_argument("--spill-budget", metavar="SIZE", help="bytes on disk")
    parser.add_argument("--link-bandwidth", metavar="SPEED", help="between accelerators and host memory, each way")
    parser.add_argument("--disk-write", metavar="SPEED", help="of the folders to spill to, all together")
    parser.add_argument("--disk-read", metavar="SPEED")
    parser.add_argument("--no-recompute", action="store_true", help="nothing is computed again")
    parser.add_argument("--json", action="store_true", help="for programs: bytes and seconds")
    parser.set_defaults(run=_run)


def _run(parser, arguments):
    given = vars(arguments)
    options = [(name, given[name]) for name in _BUDGETS if given[name] is not None]
    if arguments.no_recompute:
        options.append(("recompute", "false"))
    speeds = [(name, given[name]) for name in _SPEEDS if given[name] is not None]
    try:
        profile = _ebbtide.SavedProfile(arguments.profile)
        if arguments.device_budget is not None:
            answers = [profile.what_if(options, speeds)]
        else:
            answers = [profile.what_if([*options, ("device_budget", f"{share}%")], speeds) for share in _SHARES]
    except ConfigError as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps({"profile": arguments.profile, "answers": answers}))
        return
    print(_heading(arguments.profile, answers[0]))
    print(_one(answers[0]) if arguments.device_budget is not None else _table(answers))
    for note in _notes(answers, profile):
        print(note)


def _size(count):
    return _ebbtide.bytes_text(count)


def _sum(answer, what):
    return sum(device[what] for device in answer["devices"])


def _slower(answer):
    return f"{100 * (answer['step_s'] / answer['compute_s'] - 1):+.1f}%" if answer["compute_s"] > 0 else ""


def _treated(answer):
    """What becomes of how much: action -> bytes."""
    treated = dict.fromkeys(("keep", "offload", "spill", "recompute"), 0)
    for record in answer["records"]:
        treated[record["action"]] += record["bytes"]
    return treated


def _heading(name, answer):
    return f"{name}: {len(answer['records'])} tensors, {_size(_sum(answer, 'saved_bytes'))}; the computation of a step takes {answer['compute_s']:.3f} s"


def _row(cells):
    first, *others = cells
    return f"{first:22}" + "".join(f"{cell:>12}" for cell in others)


def _table(answers):
    rows = [_row(("device_budget", "step", "slower", "bound", "device", "host", "spill", "kept", "moved", "run again"))]
    for share, answer in zip(_SHARES, answers):
        treated = _treated(answer)
        sizes = (_sum(answer, "peak_bytes"), answer["host_peak_bytes"], answer["spill_peak_bytes"])
        fates = (treated["keep"], treated["offload"] + treated["spill"], treated["recompute"])
        budget = f"{share:3}% {_size(_sum(answer, 'budget_bytes')):>12}" + (" !" if _sum(answer, "over_bytes") else "")
        rows.append(_row((budget, f"{answer['step_s']:.3f} s", _slower(answer), f"{answer['lower_bound_s']:.3f} s", *map(_size, sizes), *map(_size, fates))))
    return "\n".join(rows)


def _one(answer):
    rows = [_row(("memory", "peak", "budget", "saved"))]
    for device in answer["devices"]:
        rows.append(_row(("  " + device["name"], _size(device["peak_bytes"]), _size(device["budget_bytes"]), _size(device["saved_bytes"]))))
    if answer["host_peak_bytes"]:
        rows.append(_row(("  in host memory", _size(answer["host_peak_bytes"]))))
    rows.append(_row(("  on disk", _size(answer["spill_peak_bytes"]))))
    rows.append(f"a step takes {answer['step_s']:.3f} s ({_slower(answer)}), and no plan takes less than {answer['lower_bound_s']:.3f} s")
    rows.append(f"  waiting {answer['stall_s']:.3f} s, running again {answer['recompute_s']:.3f} s, copies beside the computation {answer['copying_s']:.3f} s")
    fates = {}
    for record in answer["records"]:
        tensors, size = fates.get((record["action"], record["why"]), (0, 0))
        fates[record["action"], record["why"]] = (tensors + 1, size + record["bytes"])
    rows.append(f"{'what becomes of it':50} {'tensors':>10} {'bytes':>12}")
    for (action, why), (tensors, size) in sorted(fates.items(), key=lambda fate: -fate[1][1]):
        rows.append(f"  {action + ': ' + why:48} {tensors:10} {_size(size):>12}")
    return "\n".join(rows)


def _notes(answers, profile):
    over = [answer for answer in answers if _sum(answer, "over_bytes")]
    if over:
        most = max(_sum(answer, "over_bytes") for answer in over)
        where = "! marks budgets that cannot be held" if len(answers) > 1 else "this budget cannot be held"
        yield f"{where}: up to {_size(most)} too much have nowhere to go. --disk-write and --disk-read make a disk."
        if not profile.has_recipes():
            yield "The profile knows of nothing that could be run again: a store looks for that only where its budget is short."
