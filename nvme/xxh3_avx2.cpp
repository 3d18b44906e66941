// What has come from a disk is in no cache. Fetched so far ahead, it is hashed as fast as one core reads memory.
#define XXH_PREFETCH_DIST 2048
#define EBBTIDE_XXH3_NAME xxh3_avx2
#include <ebbtide/nvme/xxh3.cpp>
