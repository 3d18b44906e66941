#include <ebbtide/transfer/nvtx_range.h>

#ifdef EBBTIDE_NVTX

#define NVTX_AS_SYSTEM_HEADER
#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cstddef>

namespace ebbtide {
namespace {

/// Of the process: NVTX knows no end of a domain that libraries of one name share.
struct Domain {
  nvtxDomainHandle_t handle = nvtxDomainCreateA("ebbtide");
  std::array<nvtxStringHandle_t, 4> names{
      nvtxDomainRegisterStringA(handle, "pack"), nvtxDomainRegisterStringA(handle, "unpack"),
      nvtxDomainRegisterStringA(handle, "leave"), nvtxDomainRegisterStringA(handle, "return")};
};

/// The first call looks whether a tool listens.
const Domain& domain() noexcept {
  static const Domain domain;
  return domain;
}

}  // namespace

NvtxRange::NvtxRange(Of of, Bytes bytes) noexcept {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.payloadType = NVTX_PAYLOAD_TYPE_INT64;
  attributes.payload.llValue = bytes.count();
  attributes.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
  attributes.message.registered = domain().names[static_cast<size_t>(of)];
  (void)nvtxDomainRangePushEx(domain().handle, &attributes);  // its depth, or that no tool listens
}

NvtxRange::~NvtxRange() {
  (void)nvtxDomainRangePop(domain().handle);
}

}  // namespace ebbtide

#else

namespace ebbtide {

NvtxRange::NvtxRange(Of, Bytes) noexcept {}
NvtxRange::~NvtxRange() = default;

}  // namespace ebbtide

#endif
