//! The allocator of every program that has a node in it.
//!
//! A node allocates on many threads, briefly, and in all sizes for as long as it runs. jemalloc
//! spends half as long on that as glibc's allocator, and resident memory stays what is in use:
//! glibc leaves holes in the heap of each thread.

#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
