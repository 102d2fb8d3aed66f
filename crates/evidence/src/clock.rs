//! Two clocks and the one place where they meet.
//!
//! Observers stamp everything with their node's CLOCK_BOOTTIME, which no NTP step moves. A batch
//! carries one reading of both clocks, taken together, and correlate alone turns boot time into wall time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of one node's CLOCK_BOOTTIME. Not comparable between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

/// Nanoseconds since the Unix epoch (CLOCK_REALTIME).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub i64);

/// One reading of both clocks of a node, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// CLOCK_BOOTTIME at the reading.
    pub boot: BootTime,
    /// CLOCK_REALTIME at the same moment.
    pub wall: WallTime,
}

impl BootTime {
    /// The present moment. A clock that can't be read gives zero: Linux has both clocks since 2.6.39.
    pub fn now() -> Self {
        Self(u64::try_from(nanos(ClockId::CLOCK_BOOTTIME)).unwrap_or(0))
    }

    /// Time from `earlier` to `self`, zero if `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment `after` later.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl WallTime {
    /// The present moment.
    pub fn now() -> Self {
        Self(nanos(ClockId::CLOCK_REALTIME))
    }

    /// Time from `earlier` to `self`, zero if `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The moment `after` later.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// The moment `before` earlier.
    pub fn minus(self, before: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(before.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl ClockReading {
    /// Reads both clocks, one right after the other.
    pub fn now() -> Self {
        Self { boot: BootTime::now(), wall: WallTime::now() }
    }

    /// Wall time of a boot time of the same node, as of this reading.
    pub fn wall_of(&self, boot: BootTime) -> WallTime {
        let ahead = i128::from(boot.0) - i128::from(self.boot.0);
        WallTime(i64::try_from(i128::from(self.wall.0) + ahead).unwrap_or(self.wall.0))
    }

    /// Boot time of a wall time of the same node (kernel receive timestamps are wall times).
    pub fn boot_of(&self, wall: WallTime) -> BootTime {
        let ahead = i128::from(wall.0) - i128::from(self.wall.0);
        BootTime(u64::try_from(i128::from(self.boot.0) + ahead).unwrap_or(self.boot.0))
    }
}

fn nanos(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec().saturating_mul(1_000_000_000).saturating_add(t.tv_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_and_boot_time_convert_both_ways() {
        let reading = ClockReading { boot: BootTime(5_000), wall: WallTime(1_000_000) };
        assert_eq!(reading.wall_of(BootTime(4_000)), WallTime(999_000));
        assert_eq!(reading.boot_of(WallTime(1_000_500)), BootTime(5_500));
    }

    #[test]
    fn absurd_times_saturate_instead_of_overflowing() {
        let reading = ClockReading { boot: BootTime(u64::MAX), wall: WallTime(i64::MAX) };
        assert_eq!(reading.wall_of(BootTime(u64::MAX)), WallTime(i64::MAX));
        assert_eq!(WallTime(i64::MAX).plus(Duration::from_secs(9)), WallTime(i64::MAX));
        assert_eq!(BootTime(1).since(BootTime(2)), Duration::ZERO);
    }

    #[test]
    fn clocks_can_be_read() {
        let reading = ClockReading::now();
        assert!(reading.boot.0 > 0 && reading.wall.0 > 0);
    }
}
