#include <ebbtide/store/work.h>

namespace ebbtide {

void StoreCore::Work::run() {
  dropped.clear();  // first: what follows may wait for the memory
  exhumed.clear();
  for (const SpillTier::TransferId id : cancelled) core_.spill_->cancel(id);
  for (const SpillTier::TransferId id : demanded) core_.spill_->raise_priority(id);
  for (const Write& order : writes) core_.write(order.record, order.storage, order.memory);
  for (const Read& order : reads) core_.read(order.record, order.urgency);
}

}  // namespace ebbtide
