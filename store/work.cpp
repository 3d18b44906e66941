#include <ebbtide/store/work.h>

namespace ebbtide {

void StoreCore::Work::run() {
  for (const Part& order : parted) core_.part(order);
  // Before anything is allocated or waited for: what goes makes room for what comes.
  parted.clear();
  dropped.clear();
  exhumed.clear();
  for (const CancelledCopy& order : cancelled_copies) order.lane.cancel(order.job);
  for (const SpillTier::TransferId id : cancelled) core_.spill_->cancel(id);
  for (const SpillTier::TransferId id : demanded) core_.spill_->raise_priority(id);
  for (const Write& order : writes) core_.write(order.record, order.storage);
  for (const Read& order : reads) core_.read(order.record, order.urgency);
  if (!copies_out.empty()) core_.copy_out(copies_out);
  for (const Sink& order : sinks) core_.sink(order);
  for (const Read& order : lifts) core_.lift(order.record, order.urgency);
  for (const CopyIn& order : copies_in) core_.copy_in(order);
}

}  // namespace ebbtide
