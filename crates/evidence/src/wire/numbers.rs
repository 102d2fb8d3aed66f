//! Which number stands for which value of an enum? They are for ever; zero stands for none.

use crate::{DropClass, NameKind, Observer, Outcome, Protocol, QueryType, Role, ServerRole};

/// An enum with a number for each value.
pub(super) trait Numbered: Sized {
    /// The value's number.
    fn number(self) -> u32;
    /// None for a number that only a newer version knows.
    fn of(number: u32) -> Option<Self>;
}

macro_rules! numbered {
    ($($name:ident { $($value:ident = $number:literal),+ $(,)? })+) => { $(
        impl Numbered for $name {
            fn number(self) -> u32 {
                match self { $(Self::$value => $number),+ }
            }

            fn of(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$value),)+
                    _ => None,
                }
            }
        }
    )+ };
}

numbered! {
    Role { Prober = 1, Node = 2, Servers = 3, Inventory = 4 }
    ServerRole { Service = 1, Direct = 2 }
    NameKind { Cluster = 1, Forwarded = 2 }
    QueryType { A = 1, Aaaa = 28 }
    Outcome { Addresses = 1, NoName = 2, NoData = 3, TryAgain = 4, Failed = 5 }
    Protocol { Tcp = 6, Udp = 17 }
    DropClass { InsertRace = 1, TableFull = 2, ChainTooLong = 3, TrackerRefused = 4, Rule = 5, Unknown = 6 }
    Observer {
        Prober = 1,
        ConntrackCounters = 2,
        ConntrackTable = 3,
        Drops = 4,
        CorednsMetrics = 5,
        Inventory = 6,
    }
}
