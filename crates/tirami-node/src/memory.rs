//! The allocators of every program that has a node in it.
//!
//! A node allocates on many threads, briefly, and in all sizes for as long as it runs. jemalloc
//! spends half as long on that as glibc's allocator, and resident memory stays what is in use:
//! glibc leaves holes in the heap of each thread. SQLite and llama.cpp go on with the system's.

/// Blocks of the system's allocator from this size on go back to the system as soon as they are
/// free, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK_BYTES: libc::c_int = 256 << 10;

#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Makes large blocks of SQLite and llama.cpp go back to the system as soon as they are free.
///
/// By itself glibc takes the size of each large block that was freed as the size up to which
/// further ones come out of its heaps. SQLite's copy of a snapshot is such a block, a little larger
/// each time, and leaves a hole in the heap of the thread that writes it.
pub(crate) fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call sets a number of the allocator under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES);
    }
}
