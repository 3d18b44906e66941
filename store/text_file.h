// Files that people name, read and written whole.
#pragma once

#include <ebbtide/pinned_pool/result.h>

#include <string>

namespace ebbtide {

/// Errors: kIo, with the system's words; kInvalid: it is larger than a gibibyte.
Result<std::string> read_text_file(const std::string& path);
/// What was there is replaced when all is written, and not before. Errors: kIo, with the system's words.
Status write_text_file(const std::string& path, const std::string& text);

}  // namespace ebbtide
