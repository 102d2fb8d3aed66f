//! What must be undone when a lab ends, however it ended?
//!
//! Each lab has a folder under /run with a journal: one JSON line for each thing that outlives a process,
//! written and synced BEFORE the thing is made. `down`, a dropped [`Lab`](crate::Lab), Ctrl-C and the next
//! start of any lab command (for a lab whose owner died) all read it and undo what it names. A reboot empties
//! /run together with the namespaces.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::kubernetes::cgroups;
use crate::process::{ProcessId, wait_until};
use crate::{Error, command};

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Entry {
    /// The process that answers for the lab. When it is dead, the lab is undone.
    Owner(ProcessId),
    /// The lab stays up without an owner, until `lab down`.
    Kept,
    /// It is being undone: whoever began may have died in the middle, kept or not.
    Down,
    /// A named network namespace; everything that runs in it is killed.
    Netns(String),
    /// A process outside the lab's namespaces.
    Process(ProcessId),
    /// A file or folder outside the lab's folder.
    Remove(PathBuf),
    /// A mount.
    Unmount(PathBuf),
    /// A cgroup; everything that runs in it or below is killed.
    Cgroup(PathBuf),
    /// A command that undoes something else; its failure is told, no more.
    Run(Vec<String>),
}

/// The journal of one lab, for adding lines.
#[derive(Debug, Clone)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// Makes the lab's folder and its journal, owned by this process. An error if the name is taken by a lab
    /// that lives.
    pub fn create(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let _lock = lock()?;
        sweep_locked()?;
        let folder = folder(name);
        if folder.exists() {
            return Err(Error::AlreadyUp { name: name.to_owned() });
        }
        // Nobody else reads captures, configurations and logs.
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(Error::file("make", &folder))?;
        let path = folder.join("journal");
        File::create_new(&path).map_err(Error::file("make", &path))?;
        let journal = Self { path };
        let own = ProcessId::own()
            .ok_or_else(|| Error::system("read /proc/self/stat")(std::io::ErrorKind::NotFound.into()))?;
        journal.add(&Entry::Owner(own))?;
        Ok(journal)
    }

    /// The journal of a lab that stands.
    pub fn open(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let path = folder(name).join("journal");
        if path.exists() { Ok(Self { path }) } else { Err(Error::NoSuchLab { name: name.to_owned() }) }
    }

    /// Adds a line; it is on disk when this returns. Fails once the lab has been undone, so that nothing is made
    /// that nobody would undo.
    pub fn add(&self, entry: &Entry) -> Result<(), Error> {
        self.add_all(std::slice::from_ref(entry))
    }

    /// Adds several lines with one sync.
    pub fn add_all(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut text = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut text, entry)
                .map_err(|source| Error::Json { path: self.path.clone(), source })?;
            text.push(b'\n');
        }
        let mut file =
            OpenOptions::new().append(true).open(&self.path).map_err(Error::file("open", &self.path))?;
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(Error::file("write", &self.path))
    }
}

/// Where a lab keeps everything: /run/nslookout-lab/NAME.
pub fn folder(name: &str) -> PathBuf {
    root().join(name)
}

/// The labs that stand now, by name.
pub fn names() -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(root()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(Error::file("read", root()))?,
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| check_name(name).is_ok())
        .collect();
    names.sort();
    Ok(names)
}

/// A name that is safe in paths and in names of namespaces.
pub fn check_name(name: &str) -> Result<(), Error> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=40).contains(&name.len()) && name.bytes().all(good) {
        Ok(())
    } else {
        Err(Error::BadName { name: name.to_owned() })
    }
}

/// Undoes each lab whose owner died without keeping it. Gives their names.
pub fn sweep() -> Result<Vec<String>, Error> {
    let _lock = lock()?;
    sweep_locked()
}

/// Undoes the labs of this process that are not kept: what Ctrl-C does.
pub fn undo_own() {
    for name in names().unwrap_or_default() {
        if is_own(&name) && !kept(&read(&name)) {
            let _ = undo(&name);
        }
    }
}

/// Whether this process raised the lab of that name that stands now.
pub fn is_own(name: &str) -> bool {
    let own = ProcessId::own();
    read(name).iter().any(|entry| matches!(entry, Entry::Owner(owner) if Some(*owner) == own))
}

/// Undoes all that the lab's journal names, last first, and removes its folder. Goes on where a step fails, and
/// then leaves the folder, so that the next start tries again.
pub fn undo(name: &str) -> Result<(), Error> {
    check_name(name)?;
    let folder = folder(name);
    let entries = read(name);
    // Where this can't be written (a full disk), the lab is undone all the same.
    let _ = Journal::open(name).and_then(|journal| journal.add(&Entry::Down));
    let mut first_error = None;
    let mut note = |result: Result<(), Error>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    let namespaces: Vec<PathBuf> = entries
        .iter()
        .filter_map(|entry| if let Entry::Netns(name) = entry { Some(netns_path(name)) } else { None })
        .collect();
    let inodes: HashSet<_> = namespaces.iter().filter_map(|path| identity(path)).collect();
    note(kill_inside(&inodes));
    for entry in entries.iter().rev() {
        note(match entry {
            Entry::Owner(_) | Entry::Kept | Entry::Down => Ok(()),
            Entry::Netns(name) => unmount(&netns_path(name)).and_then(|()| remove(&netns_path(name))),
            Entry::Process(id) => id.end(),
            Entry::Remove(path) => remove(path),
            Entry::Unmount(path) => unmount(path),
            Entry::Cgroup(path) => cgroups::remove(path),
            Entry::Run(words) => run(words),
        });
    }
    // A program that was about to enter when the first look was taken.
    note(kill_inside(&inodes));
    match first_error {
        None => remove(&folder),
        Some(error) => Err(error),
    }
}

/// The file of a named network namespace.
pub fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn root() -> PathBuf {
    PathBuf::from("/run/nslookout-lab")
}

fn lock() -> Result<Flock<File>, Error> {
    let root = root();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(Error::file("make", &root))?;
    let path = root.join(".lock");
    let file = File::create(&path).map_err(Error::file("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::file("lock", path)(errno.into()))
}

fn sweep_locked() -> Result<Vec<String>, Error> {
    let mut swept = Vec::new();
    for name in names()? {
        let entries = read(&name);
        let owned = entries.iter().any(|entry| matches!(entry, Entry::Owner(owner) if owner.alive()));
        // No owner's line at all: it died before it wrote one, and had made nothing yet.
        if !owned && !kept(&entries) {
            undo(&name)?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// The lines. One that is cut short was being written when its writer died: its step had not begun.
fn read(name: &str) -> Vec<Entry> {
    let text = fs::read_to_string(folder(name).join("journal")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn kept(entries: &[Entry]) -> bool {
    entries.contains(&Entry::Kept) && !entries.contains(&Entry::Down)
}

/// Device and inode: what tells one namespace from another, and a namespace from a plain file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

/// Kills every process that lives in one of these namespaces, and waits till they are gone.
fn kill_inside(namespaces: &HashSet<(u64, u64)>) -> Result<(), Error> {
    let mut last = Ok(());
    let mut inside = Vec::new();
    let gone = wait_until(Duration::from_secs(10), || {
        inside = processes_inside(namespaces);
        for id in &inside {
            last = id.end();
        }
        inside.is_empty()
    });
    if gone {
        return Ok(());
    }
    last?;
    let what = format!("processes {inside:?} in the lab's namespaces did not end");
    Err(Error::system(what)(std::io::ErrorKind::TimedOut.into()))
}

fn processes_inside(namespaces: &HashSet<(u64, u64)>) -> Vec<ProcessId> {
    let own = identity(Path::new("/proc/self/ns/net"));
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let place = identity(Path::new(&format!("/proc/{pid}/ns/net")));
            place != own && place.is_some_and(|place| namespaces.contains(&place))
        })
        .filter_map(ProcessId::of)
        .collect()
}

fn unmount(path: &Path) -> Result<(), Error> {
    use nix::errno::Errno;
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::file("unmount", path)(errno.into())),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::file("remove", path)),
    }
}

fn run(words: &[String]) -> Result<(), Error> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    command::run(Command::new(program).args(arguments), None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_the_folder_is_refused() {
        for name in ["", ".", "../x", "a/b", "A", "x y"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("demo-1").unwrap();
    }

    #[test]
    fn a_line_that_was_cut_short_is_left_out() {
        let lines = "{\"owner\":{\"pid\":1,\"start\":2}}\n{\"netns\":\"nslab-x-node";
        let read: Vec<Entry> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        assert_eq!(read, [Entry::Owner(ProcessId { pid: 1, start: 2 })]);
    }
}
