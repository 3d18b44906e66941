// One file that uses Ebbtide::core, which brings no torch.
#include <ebbtide/core.h>

#include <cstdio>

int main() {
  ebbtide::Options options;
  ebbtide::set_option(options, "host_budget", "64MiB");
  std::printf("%lld\n", static_cast<long long>(options.host_budget->count()));
  try {
    ebbtide::set_option(options, "host_budget", "plenty");
  } catch (const ebbtide::ConfigError&) {
    return 0;
  }
  return 1;
}
