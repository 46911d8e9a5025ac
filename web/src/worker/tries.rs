//! How often the network is asked again.

use crate::download::Miss;
use crate::scope::pause;

/// Tries without a byte gained before the visitor is told.
const TRIES: u32 = 4;

/// How often something was tried since it last got on.
pub struct Tries(u32);

impl Tries {
    pub fn new() -> Self {
        Tries(1)
    }

    pub fn is_last(&self) -> bool {
        self.0 == TRIES
    }

    /// Whether to try again after a miss: waits before it says so.
    pub async fn again(&mut self, miss: &Miss, got_on: bool) -> bool {
        if miss.final_word || (self.is_last() && !got_on) {
            return false;
        }
        self.0 = if got_on { 1 } else { self.0 + 1 };
        pause(0.25 * f64::from(self.0 * self.0)).await;
        true
    }
}
