// How the private jemalloc behaves. In a file of its own, without jemalloc's header: that one declares the symbol with
// default visibility, and a shared library would export it.
//
// One automatic arena (for jemalloc's own needs; ours are made by hand) and no thread caches: what a thread cached
// would keep slabs from being idle. No decay: what is freed stays where it is, as dirty, and merges with its neighbours
// at once; a decay of zero would put each extent on a second list, for a quarter more time, and gives nothing back either.
// Dirty extents may be cut to any size (lg_extent_max_active_fit), or small blocks would grow the arena beside large
// free ones. retain: the rest of a slab in use is kept apart from what is dirty.
extern "C" {
extern const char* ebbtide_je_malloc_conf;
const char* ebbtide_je_malloc_conf =
    "narenas:1,tcache:false,retain:true,dirty_decay_ms:-1,muzzy_decay_ms:-1,lg_extent_max_active_fit:64";
}
