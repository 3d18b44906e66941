# jemalloc 5.3.0 as a private, prefixed, static PIC library: the imported target `ebbtide_jemalloc`.
#
# Why an own build: a distribution's shared jemalloc takes over the process's malloc, its PIC archive pulls in operator new, and its initial-exec TLS
# makes a dlopen fail ("cannot allocate memory in static TLS block"). This one has a prefix, no C++ part and general-dynamic TLS.
#
# A shared library that links it must add, so that none of its symbols leave the library and the library is never unloaded under a thread that still has
# jemalloc's thread-exit destructor pending (without nodelete: dlclose, then a thread exits, segfault):
#   target_link_options(<lib> PRIVATE -Wl,--exclude-libs,libjemalloc_pic.a -Wl,-z,nodelete)
include_guard(GLOBAL)
include(ExternalProject)

set(EBBTIDE_JEMALLOC_ARCHIVE "" CACHE FILEPATH "jemalloc-5.3.0.tar.bz2 as a local file (setup.sh fetches it); empty: .cache/, then the upstream release")
set(_jemalloc_name jemalloc-5.3.0.tar.bz2)
set(_jemalloc_url https://github.com/jemalloc/jemalloc/releases/download/5.3.0/${_jemalloc_name})
set(_jemalloc_sha256 2db82d1e7119df3e71b7640219b6dfe84789bc0537983c3b7ac4f7189aecfeaa)

set(_jemalloc_archive "${EBBTIDE_JEMALLOC_ARCHIVE}")
if(NOT _jemalloc_archive AND EXISTS ${PROJECT_SOURCE_DIR}/.cache/${_jemalloc_name})
  set(_jemalloc_archive ${PROJECT_SOURCE_DIR}/.cache/${_jemalloc_name})
endif()
if(NOT _jemalloc_archive)
  set(_jemalloc_archive ${PROJECT_BINARY_DIR}/${_jemalloc_name})
  if(NOT EXISTS ${_jemalloc_archive})
    # To another name first: a download that breaks off must not be taken for the archive by the next configure.
    file(DOWNLOAD ${_jemalloc_url} ${_jemalloc_archive}.part STATUS _jemalloc_status INACTIVITY_TIMEOUT 20)
    list(GET _jemalloc_status 0 _jemalloc_error)
    if(_jemalloc_error)
      list(GET _jemalloc_status 1 _jemalloc_error)
      file(REMOVE ${_jemalloc_archive}.part)
      message(FATAL_ERROR "jemalloc 5.3.0: ${_jemalloc_url} is out of reach (${_jemalloc_error}); run setup.sh or pass -DEBBTIDE_JEMALLOC_ARCHIVE=/path/to/${_jemalloc_name}")
    endif()
    file(RENAME ${_jemalloc_archive}.part ${_jemalloc_archive})
  endif()
elseif(NOT EXISTS ${_jemalloc_archive})
  message(FATAL_ERROR "EBBTIDE_JEMALLOC_ARCHIVE: there is no file ${_jemalloc_archive}")
endif()
file(SHA256 ${_jemalloc_archive} _jemalloc_found)
if(NOT _jemalloc_found STREQUAL _jemalloc_sha256)
  message(FATAL_ERROR "${_jemalloc_archive} is not jemalloc's 5.3.0 release: its SHA256 is ${_jemalloc_found}, not ${_jemalloc_sha256}; remove it")
endif()

# Its objects do not depend on our flags, so a compiler cache makes the second build tree cost seconds.
find_program(EBBTIDE_CCACHE ccache)
mark_as_advanced(EBBTIDE_CCACHE)
set(_jemalloc_cc ${CMAKE_C_COMPILER})
if(EBBTIDE_CCACHE)
  set(_jemalloc_cc "${EBBTIDE_CCACHE} ${CMAKE_C_COMPILER}")
endif()

# The largest page size that a kernel of this architecture may have: jemalloc stops where the system's is larger, not where it is smaller.
set(_jemalloc_lg_page 12)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(_jemalloc_lg_page 16)
endif()
set(_jemalloc_host)
if(CMAKE_CROSSCOMPILING)
  set(_jemalloc_host --host=${CMAKE_SYSTEM_PROCESSOR}-linux-gnu)
endif()

set(_jemalloc_dir ${PROJECT_BINARY_DIR}/jemalloc)
set(_jemalloc_library ${_jemalloc_dir}/source/lib/libjemalloc_pic.a)
ExternalProject_Add(ebbtide_jemalloc_build
  PREFIX ${_jemalloc_dir}
  SOURCE_DIR ${_jemalloc_dir}/source
  URL ${_jemalloc_archive}
  URL_HASH SHA256=${_jemalloc_sha256}
  DOWNLOAD_EXTRACT_TIMESTAMP OFF
  BUILD_IN_SOURCE ON
  CONFIGURE_COMMAND ${_jemalloc_dir}/source/configure
    "CC=${_jemalloc_cc}" "CFLAGS=-O2 -fvisibility=hidden"
    --with-jemalloc-prefix=ebbtide_je_ --with-private-namespace=ebbtide_je_priv_
    --disable-cxx --disable-initial-exec-tls --disable-cache-oblivious --disable-libdl --disable-doc --disable-shared
    --without-export --with-lg-page=${_jemalloc_lg_page} --with-lg-hugepage=21 ${_jemalloc_host}
  BUILD_COMMAND make -j2 lib/libjemalloc_pic.a
  INSTALL_COMMAND ""
  BUILD_BYPRODUCTS ${_jemalloc_library}
  LOG_DOWNLOAD ON
  LOG_CONFIGURE ON
  LOG_BUILD ON
  LOG_OUTPUT_ON_FAILURE ON)

file(MAKE_DIRECTORY ${_jemalloc_dir}/source/include)  # an imported target's include folder must exist while configuring
add_library(ebbtide_jemalloc STATIC IMPORTED GLOBAL)
set_target_properties(ebbtide_jemalloc PROPERTIES
  IMPORTED_LOCATION ${_jemalloc_library}
  INTERFACE_INCLUDE_DIRECTORIES ${_jemalloc_dir}/source/include
  INTERFACE_LINK_LIBRARIES "Threads::Threads;m")
add_dependencies(ebbtide_jemalloc ebbtide_jemalloc_build)
