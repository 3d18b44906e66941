# Toolchain for the part without torch on 64-bit ARM, as tests/aarch64.sh uses it: Debian's cross compiler, the libraries that it has unpacked into
# EBBTIDE_SYSROOT, and an emulator whose pages are as large as EBBTIDE_PAGE_BYTES.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(EBBTIDE_SYSROOT "" CACHE PATH "Where packages for arm64 were unpacked")
set(EBBTIDE_PAGE_BYTES 65536 CACHE STRING "Of the emulated system")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EBBTIDE_SYSROOT EBBTIDE_PAGE_BYTES)

set(libraries ${EBBTIDE_SYSROOT}/usr/lib/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH ${EBBTIDE_SYSROOT})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(ENV{PKG_CONFIG_SYSROOT_DIR} ${EBBTIDE_SYSROOT})
set(ENV{PKG_CONFIG_LIBDIR} ${libraries}/pkgconfig:${EBBTIDE_SYSROOT}/usr/share/pkgconfig)
string(APPEND CMAKE_EXE_LINKER_FLAGS_INIT " -Wl,-rpath-link,${libraries}")
string(APPEND CMAKE_SHARED_LINKER_FLAGS_INIT " -Wl,-rpath-link,${libraries}")

# qemu-user has no io_uring: there the thread queue is what runs.
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -p ${EBBTIDE_PAGE_BYTES} -L /usr/aarch64-linux-gnu -E LD_LIBRARY_PATH=${libraries})
