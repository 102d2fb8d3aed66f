//! How does code run inside another network namespace?
//!
//! A socket belongs for ever to the namespace in which it was made, whichever thread uses it later. So
//! each [`Namespace`] keeps one thread inside, makes sockets there on request, and hands them out. This
//! is the only place of the product that calls setns(2).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of this machine. Cheap to clone; the thread inside ends with the last clone.
#[derive(Debug, Clone)]
pub struct Namespace {
    inode: u32,
    jobs: Option<Arc<mpsc::Sender<Job>>>,
}

/// Why a namespace can't be entered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or may not be read.
    #[error(
        "can't open network namespace {path}: {source} (is the node's name right, and has this process the rights?)"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kernel refused the change of namespace.
    #[error("can't enter network namespace {path}: {source} (it needs CAP_SYS_ADMIN)")]
    Enter {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The thread inside has gone.
    #[error("the thread inside the network namespace has ended")]
    Gone,
}

impl Namespace {
    /// The namespace of the calling process. Needs no privilege; jobs run where they are called.
    pub fn current() -> Result<Self, Error> {
        let path = Path::new("/proc/self/ns/net");
        let inode = inode_of(&File::open(path).map_err(|source| open_error(path, source))?, path)?;
        Ok(Self { inode, jobs: None })
    }

    /// Opens the namespace that the file names (`/run/netns/NAME`, `/proc/PID/ns/net`) and enters it with a
    /// thread of its own. Needs CAP_SYS_ADMIN.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| open_error(path, source))?;
        let inode = inode_of(&file, path)?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (entered, outcome) = mpsc::channel();
        thread::Builder::new()
            .name("netns".into())
            .spawn(move || {
                let result = setns(&file, CloneFlags::CLONE_NEWNET);
                drop(file);
                let inside = result.is_ok();
                if entered.send(result).is_ok() && inside {
                    inbox.into_iter().for_each(|job| job());
                }
            })
            .map_err(|source| Error::Enter { path: path.to_owned(), source })?;
        match outcome.recv() {
            Ok(Ok(())) => Ok(Self { inode, jobs: Some(Arc::new(jobs)) }),
            Ok(Err(errno)) => Err(Error::Enter { path: path.to_owned(), source: errno.into() }),
            Err(mpsc::RecvError) => Err(Error::Gone),
        }
    }

    /// The namespace's inode: what the kernel calls `net->ns.inum`.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// Runs a short closure inside (make a socket, bind it) and waits for its value. Blocks the caller for as
    /// long as the closure runs.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let Some(jobs) = &self.jobs else { return Ok(job()) };
        let (done, result) = mpsc::channel();
        jobs.send(Box::new(move || drop(done.send(job())))).map_err(|_| Error::Gone)?;
        result.recv().map_err(|mpsc::RecvError| Error::Gone)
    }

    /// The same for async callers: waits without blocking the runtime.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let Some(jobs) = &self.jobs else { return Ok(job()) };
        let (done, result) = oneshot::channel();
        jobs.send(Box::new(move || drop(done.send(job())))).map_err(|_| Error::Gone)?;
        result.await.map_err(|_| Error::Gone)
    }
}

fn inode_of(file: &File, path: &Path) -> Result<u32, Error> {
    let inode = file.metadata().map_err(|source| open_error(path, source))?.ino();
    // Namespace inodes are 32 bits wide in the kernel.
    Ok(u32::try_from(inode).unwrap_or(u32::MAX))
}

fn open_error(path: &Path, source: std::io::Error) -> Error {
    Error::Open { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_is_named_with_its_path() {
        let error = Namespace::open(Path::new("/run/netns/no-such")).unwrap_err().to_string();
        assert!(error.contains("/run/netns/no-such"), "{error}");
    }

    #[test]
    fn the_current_namespace_runs_jobs_in_place() {
        let here = Namespace::current().unwrap();
        let caller = thread::current().id();
        assert_eq!(here.run_blocking(|| thread::current().id()).unwrap(), caller);
        assert!(here.inode() > 0);
    }
}
