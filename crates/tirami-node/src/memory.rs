//! What the process does with memory that is free again.

/// Blocks from this size on go back to the system as soon as they are free, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BLOCK_BYTES: libc::c_int = 256 << 10;

/// Makes large blocks go back to the system as soon as they are free.
///
/// By itself glibc takes the size of each large block that was freed as the size up to which
/// further ones come out of its heaps. A snapshot is such a block, a little larger each time, and
/// leaves a hole in the heap of whichever thread made it.
pub(crate) fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call sets a number of the allocator under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES);
    }
}
