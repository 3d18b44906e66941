# Ebbtide::torch: torch's headers and libraries as one imported target, and EBBTIDE_TORCH_VERSION, EBBTIDE_TORCH_LIBRARY_DIR,
# EBBTIDE_TORCH_PYTHON_LIBRARY. Used by this build and, installed, by EbbtideConfig.cmake in its users' builds.
#
# Why not find_package(Torch): for a torch built with CUDA it loads CMake's CUDA language and toolkit, asks a GPU for its
# architecture, and stops where the toolkit or the GPU is missing or where the toolkit has no nvToolsExt. Ebbtide compiles and links
# nothing of CUDA: three libraries and two include folders are all it needs of any torch. A user may call find_package(Torch) as well: the
# libraries are the same files, and the torch that it found is the one taken here.
#
# Where torch is looked for, the first that is given wins: EBBTIDE_TORCH_ROOT (the folder with include/ and lib/), a target torch_cpu, Torch_DIR or
# CMAKE_PREFIX_PATH (as for find_package), EBBTIDE_TORCH_BESIDE, the interpreter Python_EXECUTABLE, the python of an active environment.
#
# When it fails, Ebbtide::torch is not defined and EBBTIDE_TORCH_NOT_FOUND is the reason.

set(EBBTIDE_TORCH_ROOT "" CACHE PATH "Folder with torch's include/ and lib/; empty: searched")
set(EBBTIDE_TORCH_MINIMUM 2.11) # c10::Stream::native_handle()

# The folder with torch's include/ and lib/, and in `config_dir` that of its TorchConfig.cmake; both empty when there is no torch.
function(ebbtide_locate_torch root_var config_dir_var)
  set(root "${EBBTIDE_TORCH_ROOT}")
  if(NOT root AND TARGET torch_cpu)
    foreach(property IMPORTED_LOCATION_RELEASE IMPORTED_LOCATION)
      get_target_property(location torch_cpu ${property})
      if(location)
        cmake_path(GET location PARENT_PATH root)
        cmake_path(GET root PARENT_PATH root)
        break()
      endif()
    endforeach()
  endif()
  if(NOT root)
    # The suffixes are those of an unpacked LibTorch and of torch.utils.cmake_prefix_path. Not the system's folders: a distribution's old torch
    # must not come before that of the active environment.
    set(config_dir "${Torch_DIR}")
    if(NOT EXISTS "${config_dir}/TorchConfig.cmake")
      unset(config_dir)
      find_path(config_dir TorchConfig.cmake HINTS "${EBBTIDE_TORCH_BESIDE}" PATH_SUFFIXES share/cmake/Torch Torch
        NO_CACHE NO_SYSTEM_ENVIRONMENT_PATH NO_CMAKE_SYSTEM_PATH)
    endif()
    if(config_dir)
      cmake_path(SET root NORMALIZE "${config_dir}/../../..")
    endif()
  endif()
  if(NOT root)
    # find_spec finds the folder without loading torch's libraries: quick, and right also where they cannot be loaded.
    foreach(python "${Python_EXECUTABLE}" "${Python3_EXECUTABLE}" python3 python)
      if(python)
        execute_process(
          COMMAND ${python} -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
          OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
        if(root)
          # Kept, as find_package would: a later run of CMake from another shell must not meet another torch.
          set(EBBTIDE_TORCH_ROOT "${root}" CACHE PATH "Folder with torch's include/ and lib/; empty: searched" FORCE)
          break()
        endif()
      endif()
    endforeach()
  endif()
  if(root)
    cmake_path(NORMAL_PATH root)
    string(REGEX REPLACE "/$" "" root "${root}")
    set(config_dir "${root}/share/cmake/Torch")
  endif()
  set(${root_var} "${root}" PARENT_SCOPE)
  set(${config_dir_var} "${config_dir}" PARENT_SCOPE)
endfunction()

function(ebbtide_find_torch)
  if(TARGET Ebbtide::torch) # found before, perhaps from another folder, which has variables of its own
    foreach(name VERSION LIBRARY_DIR PYTHON_LIBRARY OLD_ABI)
      get_target_property(value Ebbtide::torch EBBTIDE_TORCH_${name})
      if(value)
        set(EBBTIDE_TORCH_${name} ${value} PARENT_SCOPE)
      endif()
    endforeach()
    return()
  endif()
  ebbtide_locate_torch(root config_dir)
  if(NOT root)
    set(EBBTIDE_TORCH_NOT_FOUND "no torch found. Activate the Python environment that has it, or pass \
-DCMAKE_PREFIX_PATH=\"$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')\" or -DEBBTIDE_TORCH_ROOT=<an unpacked LibTorch>"
        PARENT_SCOPE)
    return()
  endif()

  set(version_header ${root}/include/torch/headeronly/version.h)
  set(version "")
  if(EXISTS ${version_header})
    file(STRINGS ${version_header} lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    string(REGEX MATCHALL "[0-9]+" version "${lines}")
    list(JOIN version "." version)
  elseif(EXISTS ${config_dir}/TorchConfigVersion.cmake)
    file(STRINGS ${config_dir}/TorchConfigVersion.cmake version REGEX "set\\(PACKAGE_VERSION ")
    string(REGEX MATCH "[0-9]+\\.[0-9]+(\\.[0-9]+)?" version "${version}")
  endif()
  if(NOT version OR version VERSION_LESS EBBTIDE_TORCH_MINIMUM)
    set(EBBTIDE_TORCH_NOT_FOUND "the torch in ${root} is version '${version}'; Ebbtide needs ${EBBTIDE_TORCH_MINIMUM} or newer" PARENT_SCOPE)
    return()
  endif()

  foreach(name torch torch_cpu c10 torch_python) # torch_python: not in a LibTorch for C++ alone
    unset(library_${name})
    find_library(library_${name} ${name} HINTS ${root}/lib NO_DEFAULT_PATH NO_CACHE)
    if(NOT library_${name} AND NOT "${name}" STREQUAL "torch_python")
      set(EBBTIDE_TORCH_NOT_FOUND "${root}/lib has no lib${name}.so: that torch is not complete, install it again" PARENT_SCOPE)
      return()
    endif()
  endforeach()

  add_library(Ebbtide::torch INTERFACE IMPORTED GLOBAL) # GLOBAL: else a project that adds Ebbtide as a subdirectory cannot link it
  target_include_directories(Ebbtide::torch INTERFACE ${root}/include ${root}/include/torch/csrc/api/include)
  target_link_libraries(Ebbtide::torch INTERFACE ${library_torch_cpu} ${library_c10})
  # libtorch.so has no symbol of its own, but it is what loads torch's CUDA part: --as-needed, many distributions' default, would drop it.
  target_link_options(Ebbtide::torch INTERFACE "LINKER:--push-state,--no-as-needed,${library_torch},--pop-state")
  # torch's libraries find the CUDA libraries of the wheel by their own rpath. ld, which checks them while it links a program, must look there
  # before it looks in the system, where another NCCL or cuDNN may lie.
  file(GLOB cuda_library_dirs ${root}/../nvidia/*/lib)
  foreach(dir ${root}/lib ${cuda_library_dirs})
    cmake_path(NORMAL_PATH dir)
    target_link_options(Ebbtide::torch INTERFACE "LINKER:-rpath-link,${dir}")
  endforeach()
  # The C++ ABI of std::string is torch's choice. Torch's own packages have used the new one, gcc's default, since 2.7.
  if(EXISTS ${config_dir}/TorchConfig.cmake)
    file(STRINGS ${config_dir}/TorchConfig.cmake abi REGEX "_GLIBCXX_USE_CXX11_ABI=0")
    if(abi)
      target_compile_definitions(Ebbtide::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=0)
      set_target_properties(Ebbtide::torch PROPERTIES EBBTIDE_TORCH_OLD_ABI ON)
      set(EBBTIDE_TORCH_OLD_ABI ON PARENT_SCOPE)
    endif()
  endif()

  set(EBBTIDE_TORCH_VERSION ${version} PARENT_SCOPE)
  set(EBBTIDE_TORCH_LIBRARY_DIR ${root}/lib PARENT_SCOPE)
  set_target_properties(Ebbtide::torch PROPERTIES EBBTIDE_TORCH_VERSION ${version} EBBTIDE_TORCH_LIBRARY_DIR ${root}/lib)
  if(library_torch_python)
    set(EBBTIDE_TORCH_PYTHON_LIBRARY ${library_torch_python} PARENT_SCOPE)
    set_target_properties(Ebbtide::torch PROPERTIES EBBTIDE_TORCH_PYTHON_LIBRARY ${library_torch_python})
  endif()
endfunction()

ebbtide_find_torch()
