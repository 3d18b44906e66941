#include <ebbtide/hooks/error_translation.h>

#include <atomic>

namespace ebbtide {
namespace {

std::atomic<void (*)(const Error&)> translator{nullptr};

}  // namespace

void set_error_translator(void (*rethrow)(const Error& error)) {
  translator = rethrow;
}

void translate(const Error& error) {
  if (auto* rethrow = translator.load()) rethrow(error);
}

}  // namespace ebbtide
