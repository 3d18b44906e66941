// Ebbtide without torch: what another framework's hooks are written against.
#pragma once

#include <ebbtide/pinned_pool/bytes.h>
#include <ebbtide/store/doctor.h>
#include <ebbtide/store/error.h>
#include <ebbtide/store/options.h>
#include <ebbtide/store/stats.h>
#include <ebbtide/store/store.h>
#include <ebbtide/store/store_core.h>
#include <ebbtide/store/what_if.h>
