//! What always goes on beside a fault: real lookups, and noise that is not DNS?
