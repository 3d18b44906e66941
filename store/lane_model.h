// When transfers over a link or a disk would end: two directions, each in order, that slow each other down.
#pragma once

#include <ebbtide/store/machine.h>

#include <algorithm>

namespace ebbtide {

/// A pure value. Times are seconds.
class LaneModel {
 public:
  LaneModel(LaneSpeed out, LaneSpeed in, double latency_s) noexcept : out_(out), in_(in), latency_s_(latency_s) {}
  explicit LaneModel(const LinkModel& link) noexcept : LaneModel(link.out, link.in, link.latency_s) {}
  explicit LaneModel(const DiskModel& disk) noexcept
      : LaneModel({disk.write, disk.write / 2}, {disk.read, disk.read / 2}, disk.latency_s) {}

  /// The end of a transfer that may begin at `ready`, as end() reads it: what comes in later may still delay it.
  double push_out(double ready, double bytes) noexcept {
    const double start = std::max(out_free_, ready) + latency_s_;
    out_free_ = start + duration(out_, bytes, in_free_ - start);
    return out_free_ - delay_;
  }
  double end(double pushed) const noexcept { return pushed + delay_; }

  /// The end of a transfer that may begin at `ready`.
  double push_in(double ready, double bytes) noexcept {
    const double start = std::max(in_free_, ready) + latency_s_;
    const double both = out_free_ - start;
    in_free_ = start + duration(in_, bytes, both);
    if (both > 0) {
      const double lost = std::min(both, in_free_ - start) * (1 - out_.duplex / out_.alone);
      delay_ += lost;
      out_free_ += lost;
    }
    return in_free_;
  }

 private:
  /// `both`: for how long the other direction is busy too.
  static double duration(const LaneSpeed& speed, double bytes, double both) noexcept {
    if (both <= 0) return bytes / speed.alone;
    const double meanwhile = both * speed.duplex;
    return bytes <= meanwhile ? bytes / speed.duplex : both + (bytes - meanwhile) / speed.alone;
  }

  LaneSpeed out_, in_;
  double latency_s_;
  double out_free_ = 0, in_free_ = 0;
  double delay_ = 0;  // of all pushed out so far, by what came in since
};

}  // namespace ebbtide
