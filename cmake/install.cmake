# Install rules, and the same package in the build tree: CMAKE_PREFIX_PATH may name either.
#
# Components: `ebbtide` is what a C++ user needs; `namelink` the unversioned link, for builds without CMake; `python`, defined in hooks/python, the
# package, which pip alone installs.
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Ebbtide)
set(build_config_dir ${PROJECT_BINARY_DIR}/cmake)

function(ebbtide_install_library target export)
  install(TARGETS ${target} EXPORT ${export}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ebbtide NAMELINK_COMPONENT namelink)
  install(EXPORT ${export} NAMESPACE Ebbtide:: DESTINATION ${config_dir} COMPONENT ebbtide)
  export(EXPORT ${export} NAMESPACE Ebbtide:: FILE ${build_config_dir}/${export}.cmake)
endfunction()

ebbtide_install_library(ebbtide_core EbbtideCoreTargets)
set(rooms ${EBBTIDE_CORE_ROOMS})
set(umbrellas store/core.h)
if(EBBTIDE_TORCH)
  ebbtide_install_library(ebbtide EbbtideTorchTargets)
  list(APPEND rooms hooks)
  list(APPEND umbrellas hooks/ebbtide.h)
endif()

foreach(room ${rooms})
  install(DIRECTORY ${room} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ebbtide COMPONENT ebbtide
    FILES_MATCHING PATTERN "*.h" PATTERN python EXCLUDE)
endforeach()
install(FILES ${umbrellas} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/ebbtide COMPONENT ebbtide)

configure_package_config_file(cmake/EbbtideConfig.cmake.in ${build_config_dir}/EbbtideConfig.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(${build_config_dir}/EbbtideConfigVersion.cmake COMPATIBILITY SameMinorVersion)
file(COPY cmake/EbbtideTorch.cmake DESTINATION ${build_config_dir})
install(FILES ${build_config_dir}/EbbtideConfig.cmake ${build_config_dir}/EbbtideConfigVersion.cmake cmake/EbbtideTorch.cmake
  DESTINATION ${config_dir} COMPONENT ebbtide)
