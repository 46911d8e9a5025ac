//! What memory the machine has left, and how this process keeps its own.

/// Bytes of main memory that can be had without swapping; None where the system does not say.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Lets [`peak`] begin anew; where the system does not allow it, the peak stays that of the whole process.
pub fn forget_peak() {
    drop(std::fs::write("/proc/self/clear_refs", "5"));
}

/// The most memory that this process has held since [`forget_peak`], or its beginning, in bytes.
pub fn peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// From this size on the C library gives every block back to the system as soon as it is freed.
const GIVEN_BACK: usize = 32 << 20;

/// Keeps what is freed for the next tensor, in one heap for all threads, where tensors of `largest` bytes would be given
/// back: the kernel clears the pages of each new one, which was a fifth of a training step.
pub fn keep_freed(largest: usize) {
    if largest < GIVEN_BACK {
        return;
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, 1 << 30), (libc::M_TRIM_THRESHOLD, -1), (libc::M_ARENA_MAX, 1)]
    {
        // SAFETY: it sets a number of the allocator, under its lock. One that does not know it refuses.
        unsafe { libc::mallopt(parameter, value) };
    }
}
