"""Where transfer/ and store/ order or hold: every line that looks like it, and the few of them that need no mutant."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mutants import MUTANTS
from weave import sources

# Too much rather than too little: what is no order is on a list below.
LOOKS_LIKE_IT = re.compile(
    "|".join(
        (
            r"\bwait(_for|_until)?\(",
            r"\b(record|record_timed|passed|synchronize)\(",
            r"\bafter\b|keepalive",
            r"stream_wait_event|event_record|event_query|event_synchronize",
            r"passed_out\(|finished\(\)|batches_in_flight_ >|unrecorded_bytes_ >",
            r"make_shared<Passage>|\bPassage\{",
            # Members and variables that hold memory, and events and jobs that say until when.
            r"std::shared_ptr<(const )?(void|HostCopy|DeviceStorage|Passage|ReturnedMemory|Resident)> \w+( = |;|\{)",
            r"\bBlock \w+;|EventPtr \w+;|CopyJobPtr \w+;",
            # Where such a reference is set, captured, handed on or let go of.
            r"\b(storage|memory|passage|block_|heap_) = ",
            r"\[[^\]]*\b(memory|storage|passage|keepalive)\b[^\]]*\]",
            r"let_go_host_locked\(",
            r"(buried_|exhumed|dropped|parted)\.(push_back|emplace_back|swap|clear)",
        )
    )
)
# The start of a function, or its declaration: `Status CudaDevice::wait(StreamId stream, const EventPtr& event) {`.
DECLARES = re.compile(r"^(virtual |void |(?:[\w:]+(?:<.*>)?) )[\w:]+\([^()]*\)( const)?( noexcept)?( override| = 0)?( \{|;)$")

EXEMPT_FILES = {
    "transfer/cuda_api.h": "the driver's functions as a table",
    "transfer/cuda_api.cpp": "each handed on as it is",
    "transfer/cuda_entries.h": "and by name",
    "store/doctor.cpp": "measures, on memory of its own: nothing is saved there",
    "store/doctor_text.cpp": "words",
    "store/device_times.cpp": "for a time alone, which is known or is not",
    "store/device_times.h": "the same",
    "transfer/device_clock.cpp": "the same",
    "transfer/device_clock.h": "the same",
    "transfer/device.h": "promises; those who keep them have mutants",
    "transfer/host_device.cpp": "all is done at once: there is nothing to order",
    "transfer/host_device.h": "the same",
}

# (why no mutant, file, the lines: as often as each is there)
EXEMPT = (
    ("Carries memory out of the lock, which nobody uses any more.", "store/device_returning.cpp", ("std::shared_ptr<HostCopy> of_system;",)),
    ("The same.", "store/work.h", ("std::shared_ptr<HostCopy> of_system;",)),
    (
        "Waits for progress: what is waited for is looked at again in a loop, which without the wait would spin.",
        "store/leaving.cpp",
        (
            "wait(lock, pass, StallCause::kHostRoom, nullptr,",
            "wait(lock, pass, StallCause::kCopies, nullptr, [&, seen = copies_out_done_] {",
            "wait(lock, pass, StallCause::kHostRoom, nullptr,",
            "wait(lock, pass, StallCause::kRoom, nullptr, [&] {",
            "wait(lock, pass, StallCause::kRoom, nullptr, [&] {",
            "wait(lock, pass, StallCause::kRoom, nullptr,",
            "wait(lock, pass, StallCause::kRoom, nullptr,",
        ),
    ),
    ("The same.", "store/returning.cpp", ("waited_s += wait(lock, record.pass_.get(), StallCause::kReturn, &record,",)),
    ("The same.", "store/device_returning.cpp", ("waited_s += wait(lock, record.pass_.get(), StallCause::kReturn, &record, [&] {",)),
    (
        "The same: close() goes round until nothing is under way; and how a caller waits.",
        "store/store_core.cpp",
        (
            "wait(lock, nullptr, StallCause::kClose, nullptr, [&] { return !under_way(); });",
            "double StoreCore::wait(std::unique_lock<std::mutex>& lock, Pass* stalled, StallCause cause, Record* wanted,",
            "const std::cv_status woken = changed_.wait_for(lock, std::chrono::milliseconds(100));",
        ),
    ),
    (
        "The same: the link thread sleeps while there is nothing to do.",
        "store/device_link.cpp",
        ("kicked_.wait(lock, [&] { return busy_ || ended_; });", "kicked_.wait_for(lock, kPollEvery, [&] { return ended_ && !ended; });"),
    ),
    ("The same.", "store/store_core.h", ("double wait(std::unique_lock<std::mutex>& lock, Pass* stalled, StallCause cause, Record* wanted,",)),
    ("The same: a copy that has not passed may give the disk something to do.", "store/device_leaving.cpp", ("if (!copy->passed_out()) return true;", "changed |= enqueued.ok() || job->finished();")),
    ("Progress: a job that is stopped is fed until it has its event.", "transfer/copy_job.h", ("return state() == CopyState::kQueued || (state() == CopyState::kStopping && unrecorded_bytes_ > 0);",)),
    (
        "Where references lie whose holding has a mutant.",
        "store/lower_copy.h",
        (
            "std::shared_ptr<HostCopy> memory;",
            "std::shared_ptr<HostCopy> memory;",
            "std::shared_ptr<DeviceStorage> storage;",
            "CopyJobPtr out;",
            "CopyJobPtr in;",
            "std::shared_ptr<Passage> leaving;",
            "std::shared_ptr<Passage> returning;",
        ),
    ),
    (
        "The same, on their way from the lock to the call.",
        "store/work.h",
        (
            "CopyJobPtr job;",
            "CopyJobPtr job;",
            "std::shared_ptr<Passage> passage;",
            "std::shared_ptr<DeviceStorage> storage;",
            "std::shared_ptr<DeviceStorage> storage;",
            "std::shared_ptr<DeviceStorage> storage;",
            "std::shared_ptr<HostCopy> memory;",
        ),
    ),
    ("The same.", "transfer/copy_job.h", ("EventPtr after;", "std::shared_ptr<void> keepalive;", "EventPtr event_;")),
    ("The same.", "transfer/copy_lane.h", ("CopyJobPtr job;", "EventPtr event;", "EventPtr timed_from;")),
    (
        "What a record holds at rest, when no transfer runs; and what it is handed out as.",
        "store/record.h",
        ("std::shared_ptr<DeviceStorage> storage;", "std::shared_ptr<ReturnedMemory> memory;", "std::shared_ptr<Resident> resident_;", "EventPtr packed_;"),
    ),
    ("The same.", "store/store_core.h", ("std::shared_ptr<DeviceStorage> storage;", "std::shared_ptr<ReturnedMemory> memory;", "std::shared_ptr<void> extension_;")),
    ("The same.", "store/returning.cpp", ("resident.storage = mine;", "resident.memory = nullptr;", "record->resident_->memory = memory;")),
    ("The same.", "store/store_core.cpp", ("made->storage = hold();", "std::shared_ptr<Resident> resident = std::move(record.resident_);")),
    ("The same.", "store/redoing.cpp", ("made->storage = mine;", "EventPtr made_at;")),
    ("The memory itself.", "store/host_copy.h", ("Block block_;",)),
    ("The memory itself.", "store/returned_memory.h", ("Block block_;",)),
    (
        "The memory itself.",
        "store/host_copy.cpp",
        ("copy->block_ = std::move(block).value();", "copy->heap_ = {static_cast<std::byte*>(std::aligned_alloc(page, whole_size)), std::free};"),
    ),
    (
        "The memory itself.",
        "store/returned_memory.cpp",
        (
            "memory->block_ = std::move(block).value();",
            "memory->heap_ = {static_cast<std::byte*>(std::aligned_alloc(page, (whole + page - 1) / page * page)), std::free};",
        ),
    ),
    (
        "On which thread, and under no lock, the framework's code runs; when it runs is ordered by what has mutants.",
        "store/store_core.cpp",
        ("work.dropped.push_back(std::move(resident));", "work.exhumed.push_back(std::move(storage));"),
    ),
    (
        "The same.",
        "store/leaving.cpp",
        (
            "if (storage && record == nullptr && !storage->plain()) buried_.push_back(std::move(storage));",
            "if (record != nullptr) storage = nullptr;",
        ),
    ),
    ("The same.", "store/device_returning.cpp", ("buried_.push_back(record->resident_->storage);",)),
    ("The same, after the streams were told.", "store/work.cpp", ("orders_->parted.clear();", "dropped.clear();", "exhumed.clear();")),
    (
        "The same, for what no copy touches any more: a job that has ended, or memory whose stream came after the copy when it was unpacked.",
        "store/device_leaving.cpp",
        (
            "if (record->resident_ && record->resident_->storage) buried_.push_back(record->resident_->storage);",
            "work.exhumed.push_back(std::move(storage));",
            "work.exhumed.push_back(std::exchange(lower.returning->storage, nullptr));",
            "work.exhumed.push_back(std::exchange(lower.returning->storage, nullptr));",
        ),
    ),
    (
        "Lets go, or takes hold, of what the passage or a completion holds beside it: those have the mutants.",
        "store/device_leaving.cpp",
        (
            "std::shared_ptr<HostCopy> memory;",
            "if (!promised) memory = HostCopy::make(host_copy_objects_, *host_pool_, bytes, node, HostCopy::From::kPool);",
            "memory = nullptr;",
            "memory = nullptr;",
            "passage.memory = nullptr;",
            "passage.storage = nullptr;",
            "(void)let_go_host_locked(*record);",
            "(void)let_go_host_locked(record);",
            "if (!wanted_again) (void)let_go_host_locked(*record);",
            "auto memory = let_go_host_locked(record);",
            "auto storage = std::exchange(lower.leaving->storage, nullptr);",
            "record.lower_.memory = std::move(memory);",
            "request.done = [raw = passage.get()](const Status& status) {",
        ),
    ),
    (
        "The same.",
        "store/device_returning.cpp",
        (
            "std::shared_ptr<HostCopy> memory;",
            "memory = record.lower_.memory;",
            "memory = nullptr;",
            "memory = nullptr;",
            "passage.memory = nullptr;",
            "const std::shared_ptr<DeviceStorage> storage = std::move(allocated).value();",
            "record.resident_->storage = storage;",
            "if (record.item_ && !closed_) (void)let_go_host_locked(record);",
            "std::shared_ptr<HostCopy> memory;",
            "memory = HostCopy::make(host_copy_objects_, *host_pool_, record->packed_bytes(), node, from, host_registrar_);",
            "request.done = [raw = passage.get()](const Status& status) {",
        ),
    ),
    (
        "Hands on the event or the job that is waited for where the mutant is.",
        "store/device_leaving.cpp",
        ("EventPtr after;", "after = record->packed_;", "if (!after) {", "after = std::move(now).value();"),
    ),
    (
        "The same; that nothing is waited for which has passed saves a call.",
        "store/device_returning.cpp",
        ("CopyJobPtr out;", "EventPtr redone;", "if (!after.ok()) return copy_in_refused(record, after.failure());", "if (out && !out->finished()) {"),
    ),
    ("The same.", "store/store_core.cpp", ("EventPtr packed;",)),
    (
        "The event of pack(), where the mutant is.",
        "store/timing.cpp",
        ("Result<EventPtr> timed = tier.device->record_timed(stream);", "Result<EventPtr> event = tier.device->record(stream);"),
    ),
    ("The same; once is enough.", "transfer/copy_lane.cpp", (
            "if (request.after) {",
            "request.after.reset();",
            # For a time alone, which is measured or is not.
            "if (timing && !broken) timed_from = device_.record_timed(stream_);",
            "if (!times_ || job.unrecorded_bytes_ > 0) return false;",
        )),
    (
        "The same.",
        "transfer/cuda_device.cpp",
        ("return record(*events_, stream);", "return record(*timed_events_, stream);", "return pool.record(handle(stream));"),
    ),
    ("For a time alone.", "transfer/measure_link.cpp", ("Result<EventPtr> event = device_.record_timed(device_.copy_stream(direction));",)),
    ("A message.", "transfer/cuda_device.cpp", ('return Failure{FailureCode::kInvalid, 0, "Time lies between two events of this device\'s record_timed()."};',)),
    ("How much memory a device has.", "store/tiers.cpp", ("const Result<DeviceMemory> memory = device->memory();",)),
)


def lines_with_mutants(texts: dict[str, str]) -> set[tuple[str, int]]:
    covered = set()
    for mutant in MUTANTS:
        for old, _ in mutant.edits:
            if (text := texts.get(mutant.file, "")).count(old) == 1:
                first = text.count("\n", 0, text.index(old)) + 1
                covered |= {(mutant.file, line) for line in range(first, first + old.count("\n") + 1)}
    return covered


def unlisted(source: Path) -> list[str]:
    """Lines that look like an order or a hold and are on no list, and lines on the list that are not there."""
    texts = sources(source)
    covered = lines_with_mutants(texts)
    exempt = Counter((file, line) for _, file, lines in EXEMPT for line in lines)
    found = []
    for file, text in sorted(texts.items()):
        if file in EXEMPT_FILES:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not LOOKS_LIKE_IT.search(line) or (file, number) in covered:
                continue
            if exempt[file, line] > 0:
                exempt[file, line] -= 1
            elif not DECLARES.match(line):
                found.append(f"{file}:{number}: orders or holds, and has no mutant: {line}")
    found += [f"{file}: no longer there, but exempt: {line}" for (file, line), count in exempt.items() if count > 0]
    found += [f"{file}: no longer there, but exempt" for file in EXEMPT_FILES if file not in texts]
    return found
