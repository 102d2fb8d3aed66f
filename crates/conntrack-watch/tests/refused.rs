//! Where the drop helper may not be loaded: is the one who refuses named? Needs root.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::thread;

use conntrack_watch::drops::Drops;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

#[tokio::test]
async fn a_seccomp_profile_without_bpf_is_named_as_what_refuses() {
    // On a thread of its own: the filter stays with it, and this process does more.
    let refused = thread::spawn(|| {
        let rules = BTreeMap::from([(libc::SYS_bpf, Vec::new())]);
        let refuse = SeccompAction::Errno(u32::try_from(libc::EPERM).unwrap());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
        let program: BpfProgram = filter.try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        Drops::load().map(drop).unwrap_err().to_string()
    });
    let refused = refused.join().unwrap();
    assert!(
        refused.contains("may not be loaded: the container's seccomp profile refuses bpf()"),
        "{refused}"
    );
    // Without the filter it is loaded.
    Drops::load().map(drop).unwrap();
}
