// How a record's bytes can be made again from the bytes of others.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace ebbtide {

class Record;

/// One redo of one storage. The store decides when the bytes are let go of; the framework's side runs the redo, since
/// the store knows no framework. Immutable.
///
/// Lifetime: shared by the record and by redos under way. Its inputs live as long as it does, wherever their bytes are;
/// they may be redone themselves. Dropped without the store's lock.
class EBBTIDE_API Recipe {
 public:
  /// `op`: what is redone, in the report; a literal. `begin` and `end`: which bytes of the storage that was saved a redo
  /// makes. `own_bytes`: what it holds itself, beside its inputs.
  Recipe(const char* op, std::vector<std::shared_ptr<Record>> inputs, Bytes begin, Bytes end, Bytes own_bytes)
      : op_(op), inputs_(std::move(inputs)), begin_(begin), end_(end), own_bytes_(own_bytes) {}
  virtual ~Recipe() = default;
  Recipe(const Recipe&) = delete;
  Recipe& operator=(const Recipe&) = delete;

  /// Whether the inputs still are at the versions at which the op read them.
  /// Threads: any, under the store's lock: it may compare version counters, and no more.
  virtual bool inputs_unchanged() const noexcept = 0;

  /// Whether a redo costs less than a transfer, whatever the machine. The others are for plans that weigh them, and for
  /// where nothing can leave.
  virtual bool cheap() const noexcept { return true; }
  /// Whether the user asked for it: then it is used where memory is short, whatever it costs, unless a plan says
  /// otherwise, and writing to an input before the redo is the user's error.
  virtual bool asked_for() const noexcept { return false; }
  /// Whether all bytes are the same each time. Not so for what means nothing to anyone but the op that wrote it (the
  /// workspace of a recurrent layer has gaps).
  virtual bool to_the_last_byte() const noexcept { return true; }
  /// Above zero: one run makes all of the pass's records whose recipes say the same number, in the order in which they were
  /// packed, and ends after the last that is wanted.
  virtual uint64_t group() const noexcept { return 0; }
  /// What a redo takes, its inputs at hand; none where it was not measured.
  virtual std::optional<double> seconds() const noexcept { return std::nullopt; }

  const char* op() const noexcept { return op_; }
  const std::vector<std::shared_ptr<Record>>& inputs() const noexcept { return inputs_; }
  Bytes begin() const noexcept { return begin_; }
  Bytes end() const noexcept { return end_; }
  Bytes own_bytes() const noexcept { return own_bytes_; }

 private:
  const char* const op_;
  const std::vector<std::shared_ptr<Record>> inputs_;
  const Bytes begin_;
  const Bytes end_;
  const Bytes own_bytes_;
};

}  // namespace ebbtide
