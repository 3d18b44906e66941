// Ebbtide for LibTorch programs.
#pragma once

#include <ebbtide/hooks/checkpoint.h>
#include <ebbtide/hooks/doctor.h>
#include <ebbtide/hooks/module_parameters.h>
#include <ebbtide/hooks/offload_scope.h>
#include <ebbtide/hooks/region.h>
#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/store.h>
#include <ebbtide/store/what_if.h>
