// Kernels of the tests on a real GPU, as text that its driver compiles: no nvcc is needed.
#pragma once

namespace ebbtide::test {

/// spin(nanoseconds): one thread that is busy so long.
/// write(data, words, seed): tests/support/pattern.h, a thread a word.
/// check(data, words, seed, wrong): adds to *wrong each word that is not the pattern's.
inline constexpr char kKernels[] = R"(
.version 6.5
.target sm_75
.address_size 64

.visible .entry spin(.param .u64 p_nanoseconds)
{
  .reg .pred %p<2>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [p_nanoseconds];
  mov.u64 %rd2, %globaltimer;
  add.u64 %rd2, %rd2, %rd1;
AGAIN:
  mov.u64 %rd3, %globaltimer;
  setp.lt.u64 %p1, %rd3, %rd2;
  @%p1 bra AGAIN;
  ret;
}

.visible .entry write(.param .u64 p_data, .param .u32 p_words, .param .u32 p_seed)
{
  .reg .pred %p<2>;
  .reg .b32 %r<9>;
  .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [p_data];
  ld.param.u32 %r1, [p_words];
  ld.param.u32 %r2, [p_seed];
  cvta.to.global.u64 %rd1, %rd1;
  mov.u32 %r3, %ctaid.x;
  mov.u32 %r4, %ntid.x;
  mov.u32 %r5, %tid.x;
  mad.lo.u32 %r6, %r3, %r4, %r5;
  setp.ge.u32 %p1, %r6, %r1;
  @%p1 bra DONE;
  mul.lo.u32 %r7, %r6, 0x9E3779B1;
  add.u32 %r7, %r7, %r2;
  shr.u32 %r8, %r7, 15;
  xor.b32 %r7, %r7, %r8;
  mul.lo.u32 %r7, %r7, 0x2C1B3C6D;
  shr.u32 %r8, %r7, 12;
  xor.b32 %r7, %r7, %r8;
  mul.wide.u32 %rd2, %r6, 4;
  add.u64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r7;
DONE:
  ret;
}

.visible .entry check(.param .u64 p_data, .param .u32 p_words, .param .u32 p_seed, .param .u64 p_wrong)
{
  .reg .pred %p<3>;
  .reg .b32 %r<10>;
  .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [p_data];
  ld.param.u32 %r1, [p_words];
  ld.param.u32 %r2, [p_seed];
  ld.param.u64 %rd4, [p_wrong];
  cvta.to.global.u64 %rd1, %rd1;
  cvta.to.global.u64 %rd4, %rd4;
  mov.u32 %r3, %ctaid.x;
  mov.u32 %r4, %ntid.x;
  mov.u32 %r5, %tid.x;
  mad.lo.u32 %r6, %r3, %r4, %r5;
  setp.ge.u32 %p1, %r6, %r1;
  @%p1 bra DONE;
  mul.lo.u32 %r7, %r6, 0x9E3779B1;
  add.u32 %r7, %r7, %r2;
  shr.u32 %r8, %r7, 15;
  xor.b32 %r7, %r7, %r8;
  mul.lo.u32 %r7, %r7, 0x2C1B3C6D;
  shr.u32 %r8, %r7, 12;
  xor.b32 %r7, %r7, %r8;
  mul.wide.u32 %rd2, %r6, 4;
  add.u64 %rd3, %rd1, %rd2;
  ld.global.u32 %r9, [%rd3];
  setp.eq.u32 %p2, %r9, %r7;
  @%p2 bra DONE;
  red.global.add.u32 [%rd4], 1;
DONE:
  ret;
}
)";

}  // namespace ebbtide::test
