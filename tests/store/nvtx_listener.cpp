// A tool of NVIDIA's kind that counts ranges: NVTX loads what NVTX_INJECTION64_PATH names and hands it its table.
#define NVTX_AS_SYSTEM_HEADER
#include <nvtx3/nvToolsExt.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace {

std::mutex mutex;
std::map<std::string, int> begun;  // "domain: name bytes", since the last look
int open_ranges = 0;

nvtxDomainHandle_t create_domain(const char* name) {
  return reinterpret_cast<nvtxDomainHandle_t>(new std::string(name));  // as the domain, for ever
}

nvtxStringHandle_t register_string(nvtxDomainHandle_t, const char* text) {
  return reinterpret_cast<nvtxStringHandle_t>(new std::string(text));
}

int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) {
  const std::lock_guard lock(mutex);
  ++begun[*reinterpret_cast<const std::string*>(domain) + ": " +
          *reinterpret_cast<const std::string*>(attributes->message.registered) + " " +
          std::to_string(attributes->payload.llValue)];
  return open_ranges++;
}

int pop(nvtxDomainHandle_t) {
  const std::lock_guard lock(mutex);
  return --open_ranges;
}

template <class Function>
void listen(NvtxFunctionTable table, int place, Function* function) {
  *table[place] = reinterpret_cast<NvtxFunctionPointer>(function);
}

}  // namespace

#define EBBTIDE_SHOWN extern "C" __attribute__((visibility("default")))

/// How often a range of this description was begun; -1: some range has no end.
EBBTIDE_SHOWN int nvtx_listener_ranges(const char* description) {
  const std::lock_guard lock(mutex);
  return open_ranges != 0 ? -1 : begun[description];
}

EBBTIDE_SHOWN int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t export_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(export_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (callbacks == nullptr || callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  listen(table, NVTX_CBID_CORE2_DomainCreateA, create_domain);
  listen(table, NVTX_CBID_CORE2_DomainRegisterStringA, register_string);
  listen(table, NVTX_CBID_CORE2_DomainRangePushEx, push);
  listen(table, NVTX_CBID_CORE2_DomainRangePop, pop);
  return 1;
}
