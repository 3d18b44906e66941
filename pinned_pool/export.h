// Marks what libebbtide exports.
#pragma once

/// On a class or function of the public API. All else is compiled hidden (CMakeLists.txt), so that two copies of the
/// library, or of what is linked into it, can live in one process. A type that is thrown or caught across the library's
/// border needs it too, or its type_info is two.
#define EBBTIDE_API __attribute__((visibility("default")))
