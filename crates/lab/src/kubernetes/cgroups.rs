//! Where do the nodes' containers run, and how are they ended with all that is in there?
//!
//! Each node has a cgroup of its own below the root, in every hierarchy: the kubelet puts all pods into it. Version 2
//! alone and version 1 (with a `unified` hierarchy beside it or without) are both found in the table of mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::process::{ProcessId, wait_until};

/// What the kubelet can't do without, by the names of version 1's hierarchies and of version 2's controllers.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// What the kubelet uses of version 2.
const PASSED_ON: [&str; 5] = ["cpu", "cpuset", "hugetlb", "memory", "pids"];

/// The cgroup of this name in each hierarchy. An error that tells what is missing if the machine's cgroups don't do.
pub fn paths(name: &str) -> Result<Vec<PathBuf>, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(Error::file("read", "/proc/self/mounts"))?;
    let roots = hierarchies(&mounts);
    let has: Vec<_> = roots.iter().flat_map(|root| controllers(root)).collect();
    let missing: Vec<_> = NEEDED.into_iter().filter(|one| has.iter().all(|other| other != one)).collect();
    if !missing.is_empty() {
        let missing = format!("there is no cgroup controller {} below /sys/fs/cgroup", missing.join(", "));
        return Err(Error::Machine { missing });
    }
    Ok(roots.into_iter().map(|root| root.join(name)).collect())
}

/// Makes it. In version 1 a new cpuset is empty, and what joins an empty one is refused. In version 2 the kubelet
/// takes a cgroup for missing unless it has every controller of the machine: the root is told to pass them on, and
/// still does afterwards, since someone else may have come to count on it.
pub fn make(path: &Path) -> Result<(), Error> {
    let Some(root) = path.parent() else { return Ok(()) };
    let passed_on = root.join("cgroup.subtree_control");
    let now = fs::read_to_string(&passed_on).unwrap_or_default();
    let offered = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let missing = |one: &&str| now.split_whitespace().all(|other| other != *one);
    for controller in offered.split_whitespace().filter(|one| PASSED_ON.contains(one)).filter(missing) {
        fs::write(&passed_on, format!("+{controller}")).map_err(Error::file("write", &passed_on))?;
    }
    fs::create_dir(path).map_err(Error::file("make", path))?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (of_root, of_node) = (root.join(file), path.join(file));
        if of_root.exists() {
            let value = fs::read_to_string(&of_root).map_err(Error::file("read", &of_root))?;
            fs::write(&of_node, value.trim()).map_err(Error::file("write", &of_node))?;
        }
    }
    Ok(())
}

/// Kills whatever runs in it or below, and removes it.
pub fn remove(path: &Path) -> Result<(), Error> {
    let mut last = Ok(());
    let gone = wait_until(Duration::from_secs(15), || {
        for id in processes(path) {
            if let Err(error) = id.end() {
                last = Err(error);
            }
        }
        remove_tree(path).is_ok()
    });
    if gone {
        return Ok(());
    }
    last?;
    remove_tree(path).map_err(Error::file("remove", path))
}

/// The processes in it and below.
pub fn processes(path: &Path) -> Vec<ProcessId> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<_> = text.lines().filter_map(|line| ProcessId::of(line.parse().ok()?)).collect();
    all.extend(children(path).iter().flat_map(|child| processes(child)));
    all
}

/// The cgroup of this container, somewhere below.
pub fn find(path: &Path, container: &str) -> Option<PathBuf> {
    let children = children(path);
    let own = |child: &PathBuf| child.file_name().is_some_and(|name| name == container);
    children
        .iter()
        .find(|child| own(child))
        .cloned()
        .or_else(|| children.iter().find_map(|child| find(child, container)))
}

/// Only folders: the files in them go with them.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for child in children(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The roots of all hierarchies: version 2's alone, or version 1's with or without version 2's `unified` beside them.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let lines = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((Path::new(words.next()?), words.next()?))
    });
    let ours =
        lines.filter(|(place, kind)| place.starts_with("/sys/fs/cgroup") && kind.starts_with("cgroup"));
    ours.map(|(place, _)| place.to_path_buf()).collect()
}

/// The last part of a version 1 mount's path names its controllers ("cpu,cpuacct"); version 2 has a file.
fn controllers(root: &Path) -> Vec<String> {
    let file = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    file.split_whitespace().chain(name.split(',')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hierarchy_is_found_the_unified_one_too() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n";
        let found = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(hierarchies(mounts), found);
        assert_eq!(controllers(&found[0]), ["cpu", "cpuacct"]);
    }
}
