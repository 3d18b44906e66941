// How the private jemalloc behaves. In a file of its own, without jemalloc's header: that one declares the symbol with
// default visibility, and a shared library would export it.
//
// One automatic arena (for jemalloc's own needs; ours are made by hand) and no thread caches: what a thread cached
// would keep slabs from being idle. retain: what is freed stays in the arena. No decay: there is nothing to give back
// page by page, and freed neighbours merge at once.
extern "C" {
extern const char* ebbtide_je_malloc_conf;
const char* ebbtide_je_malloc_conf = "narenas:1,tcache:false,retain:true,dirty_decay_ms:0,muzzy_decay_ms:0";
}
