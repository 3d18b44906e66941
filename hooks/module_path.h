// Naming what is saved in a module's forward by the module's path.
#pragma once

#include <ebbtide/pinned_pool/export.h>
#include <ebbtide/store/region.h>

#include <cstddef>
#include <string_view>

namespace ebbtide {

/// The place of a module in a model, "blocks.3.mlp". What is saved on this thread between enter() and leave(), outside any
/// Region, is in the region of that name; the last that was entered counts. Neither waits nor allocates but for the
/// deepest nesting so far: they are called around every module.
///
/// Threads: any; each has its own nesting.
class EBBTIDE_API ModulePath {
 public:
  /// Errors: ConfigError for an empty path.
  explicit ModulePath(std::string_view path) : label_(RegionLabel::of(path, Policy::kAuto)) {}

  void enter() const;
  /// Leaves too what was entered since, in calls that an exception ended. Nothing where it was not entered.
  void leave() const noexcept;

  /// How deep this thread is, for leave_to().
  static size_t depth() noexcept;
  static void leave_to(size_t depth) noexcept;

 private:
  const RegionLabel* label_;
};

}  // namespace ebbtide
