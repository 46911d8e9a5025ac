//! A bound on the memory of a test's process: what asks for more fails. Damaged input must not be able to.

use std::alloc::System;

#[global_allocator]
static BOUNDED: cap::Cap<System> = cap::Cap::new(System, 2 << 30);
