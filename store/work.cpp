#include <ebbtide/store/work.h>

namespace ebbtide {

void StoreCore::Work::run() {
  // Before anything is allocated or waited for: what goes makes room for what comes.
  if (orders_) {
    for (const Part& order : orders_->parted) core_.part(order);
    orders_->parted.clear();
  }
  dropped.clear();
  exhumed.clear();
  if (orders_) run(*orders_);
}

void StoreCore::Work::run(Orders& orders) {
  for (const CancelledCopy& order : orders.cancelled_copies) order.lane.cancel(order.job);
  for (const SpillTier::TransferId id : orders.cancelled) core_.spill_->cancel(id);
  for (const SpillTier::TransferId id : orders.demanded) core_.spill_->raise_priority(id);
  for (const Write& order : orders.writes) core_.write(order.record, order.storage);
  for (const Read& order : orders.reads) core_.read(order.record, order.urgency);
  if (!orders.copies_out.empty()) core_.copy_out(orders.copies_out);
  for (Sink& order : orders.sinks) core_.sink(std::move(order));  // nothing but the disk holds its memory then
  for (const Read& order : orders.lifts) core_.lift(order.record, order.urgency);
  for (const CopyIn& order : orders.copies_in) core_.copy_in(order);
}

}  // namespace ebbtide
