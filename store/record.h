// One saved storage at one version: what the store keeps for autograd until the last hook that wants it is gone.
#pragma once

#include <ebbtide/nvme/spill_tier.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/pinned_pool/few.h>
#include <ebbtide/pinned_pool/result.h>
#include <ebbtide/store/intrusive_list.h>
#include <ebbtide/store/lower_copy.h>
#include <ebbtide/store/recipe.h>
#include <ebbtide/store/record_state.h>
#include <ebbtide/store/region.h>
#include <ebbtide/store/returned_memory.h>
#include <ebbtide/store/rows.h>
#include <ebbtide/store/simulator.h>
#include <ebbtide/transfer/device.h>
#include <ebbtide/transfer/device_storage.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace ebbtide {

class DeviceTier;
class Pass;
class Record;
class StoreCore;

/// One storage in resident memory, and the records whose bytes lie in it (more than one if it was saved at several
/// versions). Guarded by the core's lock; destroyed outside of it.
struct Resident : ListLink<Resident> {
  DeviceTier* tier = nullptr;
  std::shared_ptr<DeviceStorage> storage;  ///< the framework's; none yet for memory that came back and was not unpacked
  std::shared_ptr<ReturnedMemory> memory;  ///< that memory, until a tensor is laid over it
  StreamId stream = kHostStream;           ///< on which the memory is used and given back
  const void* identity = nullptr;          ///< the framework's storage; null for what came back until it is handed out
  bool returned = false;                   ///< came back from below
  bool handed_out = false;                 ///< and an unpack has returned it
  bool at_once = false;                    ///< leaves, and is let go of, whatever the budget has room for
  Bytes origin;                            ///< offset in the storage that was saved of this memory's first byte
  Bytes bytes;
  Few<Record*> records;

  std::byte* data() const noexcept { return storage ? storage->data() : memory->data(); }
  /// Its owner has made the storage smaller meanwhile (FSDP2 frees parameters so): what was saved must not be read.
  bool shrunk() const noexcept { return storage && storage->bytes() < bytes; }
};

/// How a record's bytes are cut for direct I/O from and to unaligned memory: an aligned middle that is written as it
/// lies, and the two edges, which are kept. What comes back has the old address modulo `modulus`: the file wants it,
/// and CPU kernels round differently at other alignments.
struct RecordLayout {
  size_t modulus = 64;
  size_t remainder = 0;  ///< address of the first byte modulo `modulus`
  size_t head = 0;       ///< bytes before the middle
  size_t middle = 0;
  size_t tail = 0;

  static RecordLayout of(const std::byte* data, Bytes bytes, IoAlignment alignment) noexcept;
};

/// Lifetime: shared by the hooks that may ask for it; the last one's end is its own. Destroyed on any thread, never
/// waits.
/// Threads: the core's lock guards all but what is const.
class EBBTIDE_API Record : public std::enable_shared_from_this<Record>, public ListLink<Record> {
 public:
  Record(std::shared_ptr<Pass> pass, uint64_t id) noexcept;
  ~Record();

  StoreCore& core() const noexcept { return *shared_core(); }
  const std::shared_ptr<StoreCore>& shared_core() const noexcept;
  Pass& pass() const noexcept { return *pass_; }
  const std::shared_ptr<Pass>& shared_pass() const noexcept { return pass_; }

 private:
  friend class StoreCore;

  void become(RecordState next) noexcept;

  const std::shared_ptr<Pass> pass_;
  const uint64_t id_;
  DeviceTier* tier_ = nullptr;     // fixed at its pack
  StreamId stream_ = kHostStream;  // that it was packed on

  RecordState state_ = RecordState::kResident;
  const void* version_counter_ = nullptr;
  uint32_t version_ = 0;
  Bytes begin_;  // of the bytes that its views touch, as an offset in the storage
  Bytes end_;
  Rows rows_;        // of an accelerator's record that leaves as rows; else none: it leaves as all of its bytes
  Bytes footprint_;  // of the whole storage, for statistics
  const char* op_ = nullptr;  // that made it, or null; see StoreCore::View
  const RegionLabel* label_ = nullptr;
  uint32_t slot_ = 0;                 // its place in the pass's sequence: that of its latest pack
  uint32_t index_ = 0;                // how many records the pass had before it
  Action action_ = Action::kOffload;  // what its pass's plan says, if it has one
  bool unpacked_ = false;
  bool demanded_ = false;  // somebody waits for its transfer
  bool left_ = false;      // was its resident memory ever dropped?
  bool spilled_ = false;   // was it ever on disk?
  bool stays_ = false;     // the tier below can never hold it
  bool redone_ = false;    // was it ever let go of for its recipe?
  bool reserved_ = false;  // does Pass::OnDevice::reserved count it?

  std::shared_ptr<Resident> resident_;
  RecordLayout layout_;
  std::vector<std::byte> edges_;  // head, then tail
  SpilledItem item_;
  std::optional<SpillTier::TransferId> transfer_;
  std::optional<uint64_t> fingerprint_;
  std::optional<Failure> lost_;  // in kLower: why the last attempt to bring it back failed

  std::shared_ptr<const Recipe> recipe_;  // set once, and never dropped before the record
  bool redoable_ = false;                 // there is a recipe, and it is to be used

  // Of an accelerator's record.
  EventPtr packed_;  // its producer has run before this; null: none could be made at pack, or it comes later
  LowerCopy lower_;

  /// In resident memory, gaps among them.
  Bytes bytes() const noexcept { return end_ - begin_; }
  /// In host memory or on disk.
  Bytes packed_bytes() const noexcept { return rows_.none() ? bytes() : rows_.bytes(); }
  /// Whether a copy of the record has all bytes of a view that touches [begin, end), or `rows` of it.
  bool holds(Bytes begin, Bytes end, const Rows& rows) const noexcept {
    return begin_ <= begin && end <= end_ && (rows_.none() || rows_.hold(begin_, begin, end, rows));
  }
};

}  // namespace ebbtide
