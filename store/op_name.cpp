#include <ebbtide/store/op_name.h>

#include <cxxabi.h>

#include <cstdlib>
#include <memory>

namespace ebbtide {

std::string op_name(const char* type) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(abi::__cxa_demangle(type, nullptr, nullptr, &status),
                                                         std::free);
  const std::string name = status == 0 ? demangled.get() : type;
  const size_t last = name.rfind("::");
  return last == std::string::npos ? name : name.substr(last + 2);
}

}  // namespace ebbtide
