"""Every order and every hold of transfer/ and store/ that can be left out, one at a time.

A mutant names the text of the source that puts things in order, or that holds memory while somebody still touches it. weave.py copies the
sources into the build tree with a switch around each such text; mutants_test leaves out one at a time and lets random programs run: each
must then be seen by the race detector, in every seed in which leaving it out changes an order. mutants_test prints the table: how many seeds
ran each mutant, in how many it was caught, and by which program.

When a source changes, test_in_step.py names what no longer matches, and lines that order or hold and are on no list. A new such line gets a
mutant here or, where its removal can do no harm of this kind, an Exempt in exempt.py with the reason. A wait whose removal nothing can catch
is superfluous: take it out of the product.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    why: str  # what the order or the hold is for
    file: str
    edits: tuple[tuple[str, str], ...]  # exact text, there exactly once, and what is woven in its place
    program: str = "store"  # under which it shows, see programs.h


def call(name, why, file, text, program="store"):
    """A call of the device: left out, it has no effect there."""
    return Mutant(name, why, file, ((text, f'mutants::omitting("{name}", [&] {{ return {text}; }})'),), program)


def condition(switch, name, why, file, text, program, meant):
    meant = meant or text
    return Mutant(name, why, file, ((text, text.replace(meant, f'mutants::{switch}("{name}", {meant})')),), program)


def stops(name, why, file, text, program="store", meant=None):
    """A condition that keeps something from being done yet: left out, it never holds. `meant`: the part of `text`, if not all."""
    return condition("stops", name, why, file, text, program, meant)


def allows(name, why, file, text, program="store", meant=None):
    """A condition without which something is not done yet: left out, it always holds."""
    return condition("allows", name, why, file, text, program, meant)


def woven(name, why, file, text, replacement, program="store"):
    """Anything else; `{name}` in the replacement stands for the name."""
    return Mutant(name, why, file, ((text, replacement.replace("{name}", f'"{name}"')),), program)


def after(name, why, file, text, event):
    """The event in a request: left out, the request is for an event that orders nothing."""
    return Mutant(name, why, file, ((text, text.replace(event, f'mutants::waited_for("{name}", {event})')),))


def captured(name, why, file, text, memory, program="store"):
    """A reference to `memory` that a completion captures."""
    return Mutant(name, why, file, ((text, text.replace(f"= {memory}", f'= mutants::held("{name}", {memory})')),), program)


def in_passage(name, why, file, text, slot):
    """A reference in a passage, emptied after `text`."""
    return Mutant(name, why, file, ((text, f'{text} mutants::let_go("{name}", passage.get(), passage->{slot});'),))


def keepalive(name, why, file, passage):
    """A job's reference to a passage: left out, what is in the passage ends with the passage's other owners."""
    made = f"std::allocate_shared<Passage>(passages_, {passage})"
    return Mutant(
        name,
        why,
        file,
        ((made, f'mutants::forsaken("{name}", {made})'), (".keepalive = passage}", ".keepalive = mutants::kept(passage)}")),
    )


LANE = "transfer/copy_lane.cpp"
JOB = "transfer/copy_job.h"
CUDA = "transfer/cuda_device.cpp"
EVENTS = "transfer/cuda_event_pool.cpp"
CORE = "store/store_core.cpp"
OUT = "store/device_leaving.cpp"
IN = "store/device_returning.cpp"
MEASURE = "transfer/measure_link.cpp"

# An event that counts as passed though the driver did not say so.
UNSEEN = (
    "mutants::left_out({name}) && mutants::omitting({name}, [&] {"
    " return context_->call([&](CudaApi& api) { return api.event_query(asked_for.value()); }); }) == kSuccess;"
)

MUTANTS = (
    # A lane.
    call("lane.wait", "copies come after the event that their request names", LANE, "device_.wait(stream_, request.after)"),
    call("lane.record", "a point after the copies, for all that is to come after them", LANE, "device_.record(stream_)"),
    woven(
        "lane.unknown",
        "nor where the device cannot say whether they have",
        LANE,
        "if (!passed.ok() && !means_lost(passed.failure().code)) return;",
        "const bool unknown = !passed.ok() && !means_lost(passed.failure().code);"
        " const bool last = in_flight_.front().job->state() == CopyState::kEnqueued && in_flight_.front().job->batches_in_flight_ == 1;"
        " if (mutants::stops_job({name}, unknown && last, in_flight_.front().job->request_.keepalive, stream_)) return;"
        " if (unknown && !last) return;",
        "lanes",
    ),
    call("lane.passed", "what copies touch is let go of once they have passed", LANE, "device_.passed(event)"),
    woven(
        "lane.keepalive",
        "a job holds what its copies touch, whatever its owner does",
        JOB,
        "request_(std::move(request)) {}",
        "request_(std::move(request)) { if (mutants::left_out({name})) request_.keepalive = nullptr; }",
        "lanes",
    ),
    woven(
        "lane.batches",
        "a job that is withdrawn ends after the copies enqueued before",
        LANE,
        "job->batches_in_flight_ > 0",
        "mutants::stops_job({name}, job->batches_in_flight_ > 0 && job->state() == CopyState::kStopping, job->request_.keepalive, stream_)"
        " || (job->batches_in_flight_ > 0 && job->state() != CopyState::kStopping)",
        "lanes",
    ),
    woven(
        "lane.unrecorded",
        "and after those that the device had no event for yet",
        LANE,
        "|| job->unrecorded_bytes_ > 0) return;",
        "|| mutants::stops_job({name}, job->unrecorded_bytes_ > 0 && job->state() == CopyState::kStopping, job->request_.keepalive, stream_))"
        " return;",
        "lanes",
    ),
    stops("lane.leak_in_flight", "a lane that dies early leaks what copies touch", LANE, "!in_flight_.empty()) new", "lanes", "!in_flight_.empty()"),
    stops("lane.leak_queued", "and what copies without an event touch", LANE, "!queue_.empty()) new", "lanes", "!queue_.empty()"),
    allows("job.finished", "a job is finished when its copies have passed", JOB, "state() >= CopyState::kPassed"),
    woven(
        "lane.held",
        "one thread at a time enqueues a job, and who needs it waits for that",
        LANE,
        "released_.wait(lock, [&] { return !job->held_; });",
        "released_.wait(lock, [&] { return mutants::passes_over({name}, !job->held_); });",
        "lanes",
    ),
    # CUDA.
    call("cuda.wait", "what Device::wait promises", CUDA, "api.stream_wait_event(handle(stream), waited_for.value(), 0)", "cuda store"),
    call("cuda.query", "what Device::passed promises", CUDA, "api.event_query(asked_for.value())", "cuda store"),
    woven(
        "cuda.not_ready",
        "an event that is not ready has not passed",
        CUDA,
        "if (result == CudaResult::kNotReady || is_capture_error(result)) return false;",
        "if (result == CudaResult::kNotReady || is_capture_error(result)) return " + UNSEEN,
        "cuda store",
    ),
    woven(
        "cuda.not_known",
        "nor has one that the driver can say nothing of now",
        CUDA,
        "case FailureCode::kUnsupported:\n      return false;",
        "case FailureCode::kUnsupported:\n      return " + UNSEEN,
        "cuda store",
    ),
    call("cuda.synchronize", "what Device::synchronize promises", CUDA, "api.event_synchronize(waited_for.value())", "cuda lanes"),
    call("cuda.record", "what Device::record promises", EVENTS, "api.event_record(event, stream)", "cuda store"),
    Mutant(
        "cuda.event_held",
        "a handle is not recorded anew while somebody may wait for it",
        EVENTS,
        (
            ("  pool_->give_back(handle_);", '  mutants::handle_ends(this); if (!mutants::left_out("cuda.event_held")) pool_->give_back(handle_);'),
            (
                "  return EventPtr(std::allocate_shared<CudaPooledEvent>(memory_, shared_from_this(), event));",
                "  const auto pooled = std::allocate_shared<CudaPooledEvent>(memory_, shared_from_this(), event);"
                ' mutants::handle_begins(pooled.get(), event); if (mutants::left_out("cuda.event_held")) give_back(event);'
                " return EventPtr(pooled);",
            ),
        ),
        "cuda store",
    ),
    # A record leaves.
    call("pack.record", "a copy out comes after the record's producer", CORE, "mark_pack(tier, goes_on ? pass.get() : nullptr, view.stream)"),
    woven(
        "pack.widened",
        "and after that of the part by which it is widened",
        CORE,
        "record->packed_ = produced;",
        "record->packed_ = mutants::replaced({name}, produced, record->packed_);",
    ),
    woven(
        "copy_out.record",
        "and where no event could be had at pack, after all that is enqueued now",
        OUT,
        "link.device->record(stream)",
        "mutants::left_out({name}) ? mutants::nothing_after(record.get()) : link.device->record(stream)",
    ),
    after("copy_out.after", "the job waits for that event", OUT, ".after = std::move(after),", "std::move(after)"),
    keepalive("copy_out.keepalive", "both ends of a copy out outlive the record", OUT, "Passage{weak_from_this(), record.get(), memory, orders[i].storage}"),
    in_passage("copy_out.memory", "its host memory is not handed out again under it", OUT, "record->lower_.leaving = passage;", "memory"),
    in_passage("copy_out.storage", "nor its device memory", OUT, "record->lower_.leaving = passage;", "storage"),
    Mutant(
        "leaving.enqueued",
        "memory is let go of once there is an event to wait for",
        OUT,
        (
            (
                "if (state == CopyState::kEnqueued || state == CopyState::kPassed) record",
                'if (mutants::passes_over("leaving.enqueued", state == CopyState::kEnqueued || state == CopyState::kPassed)) record',
            ),
            (
                "void StoreCore::part(const Part& order) {",
                "void StoreCore::part(const Part& order) {"
                ' if (mutants::left_out("leaving.enqueued") && !order.job->event()) mutants::note_executed();',
            ),
        ),
    ),
    woven(
        "part.unfinished",
        "memory under a copy goes through part()",
        OUT,
        "lower.out && !lower.out->finished()",
        "mutants::stops_end({name}, lower.out && !lower.out->finished(), storage, lower.out)",
    ),
    call("part.wait", "who gets the memory next comes after the copy", OUT, "order.link.device->wait(order.stream, order.job->event())"),
    woven(
        "part.parked",
        "and where the stream cannot be told to, not before the copy has passed",
        OUT,
        "!order.job->finished()",
        "mutants::stops_end({name}, !order.job->finished(), order.storage, order.job)",
    ),
    Mutant(
        "part.storage",
        "for which it is still held then",
        OUT,
        (
            (
                "lower.out, lower.leaving, std::move(storage)}",
                'lower.out, lower.leaving, mutants::parked("part.storage", std::move(storage), lower.out)}',
            ),
        ),
    ),
    # On to disk and back.
    woven(
        "sink.passed_out",
        "the disk reads what the copy out has filled",
        OUT,
        "|| !copy->passed_out()",
        "|| mutants::stops_end({name}, !copy->passed_out(), copy->memory, copy->out)",
    ),
    woven(
        "lower_copy.passed_out",
        "which is when it has passed",
        "store/lower_copy.h",
        "(out && out->state() == CopyState::kPassed)",
        "!mutants::stops_end({name}, !(out && out->state() == CopyState::kPassed), memory, out)",
    ),
    woven(
        "sink.memory",
        "host memory is not handed out again while the disk reads it",
        OUT,
        "memory = std::move(order.memory)](Result",
        "memory = mutants::held({name}, order.memory)](Result",
    ),
    woven(
        "lift.memory",
        "nor while the disk fills it",
        IN,
        "memory = std::move(memory)](const Status& status)",
        "memory = mutants::held_alone({name}, std::move(memory))](const Status& status)",
    ),
    # A record returns.
    call("copy_in.record", "a copy in comes after the earlier use of the memory that it fills", IN, "link.device->record(stream)"),
    after("copy_in.after", "the job waits for that event", IN, ".after = std::move(after).value(),", "std::move(after).value()"),
    call("copy_in.filled", "and comes after the copy out that fills its host memory", IN, "link.device->wait(link.in.stream(), out->event())"),
    keepalive("copy_in.keepalive", "both ends of a copy in outlive the record", IN, "Passage{weak_from_this(), &record, memory, storage}"),
    in_passage("copy_in.memory", "its host memory is not handed out again under it", IN, "record.lower_.returning = passage;", "memory"),
    in_passage("copy_in.storage", "nor its device memory", IN, "record.lower_.returning = passage;", "storage"),
    call("take.wait", "the computation comes after the copy in", IN, "link.device->wait(stream, here.value())"),
    woven(
        "unpack.other_stream",
        "so does one on another stream than the memory was fetched for",
        IN,
        "resident.returned && resident.stream != stream && record.state_ == RecordState::kClean",
        "mutants::stops_use({name}, resident.returned && resident.stream != stream && record.state_ == RecordState::kClean, stream,"
        " record.lower_.in)",
    ),
    woven(
        "unpack.forsake",
        "and the memory's own stream, before it goes",
        IN,
        "record.resident_->stream != stream",
        "mutants::stops_end({name}, record.resident_->stream != stream, record.resident_->storage, record.lower_.in)",
    ),
    call("redone.record", "what is made again is there for other streams once it is made", "store/redoing.cpp", "tier.device->record(stream)"),
    call("unpack.redone", "for which another stream waits", IN, "tier.device->wait(stream, redone)"),
    # A link that is measured, and the memory that it is measured with.
    call("measure.passed", "copies have passed when they are said to have", MEASURE, "device_.passed(end[way])", "link"),
    call("measure.record", "which is when all of them have", MEASURE, "device_.record(stream)", "link"),
    # CPU tensors, which the disk writes and fills where they lie.
    captured("write.storage", "a tensor that dies stays while the disk reads it", "store/leaving.cpp", "storage = storage](Result", "storage", "host store"),
    woven(
        "read.memory",
        "memory that is given up stays while the disk fills it",
        "store/returning.cpp",
        "record_id = record->id_, memory](",
        "record_id = record->id_, memory = mutants::held({name}, memory)](",
        "host store",
    ),
)

# What the detector must be told, woven in whatever is left out: where memory begins and ends, and where transfers end.
OBSERVED = (
    ("store/host_copy.cpp", "const auto copy = std::allocate_shared<HostCopy>(objects, Made());", "mutants::memory_begins(); {text}"),
    (
        "store/host_copy.cpp",
        "HostCopy::~HostCopy() {",
        "{text} for (const IoPiece& piece : pieces_) mutants::memory_ends(piece.data, piece.bytes);",
    ),
    ("store/returned_memory.cpp", "std::byte* base = nullptr;", "mutants::memory_begins(); {text}"),
    ("store/returned_memory.cpp", "ReturnedMemory::~ReturnedMemory() {", "{text} mutants::memory_ends(data_, static_cast<size_t>(bytes_.count()));"),
    # The pool's lock is between the end of memory and that of its slab.
    ("store/device_registrar.h", "device_->unregister_host(data, bytes);", "mutants::memory_begins(); {text} mutants::memory_unmapped();"),
    (OUT, "CopyJobPtr job = link.out.submit(std::move(request));", "{text} mutants::begin_transfer(passage.get(), job);"),
    (IN, "CopyJobPtr job = link.in.submit(std::move(request));", "{text} mutants::begin_transfer(passage.get(), job);"),
    (OUT, "Record* record = std::exchange(passage.record, nullptr);", "mutants::end_transfer(&passage); {text}"),
    (IN, "Record* record = std::exchange(passage.record, nullptr);", "mutants::end_transfer(&passage); {text}"),
    (CORE, "record->packed_ = std::move(produced);", "{text} if (tier.link && !record->packed_) mutants::note_produced(record.get(), view.stream);"),
    (
        CUDA,
        'return context_->run("Making a stream wait for an event",',
        'return mutants::WaitsForHandle("cuda.event_held", stream, event.get()) = context_->run("Making a stream wait for an event",',
    ),
    # So that jobs queue.
    ("transfer/copy_lane.h", "Bytes max_in_flight = MiB(64);", "Bytes max_in_flight = mutants::cap();"),
)
