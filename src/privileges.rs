//! Root's rights: used for one thing, and given up before anything else is done.
//!
//! Each socket is an open file. How many a process may have is the system's to say, and only root may
//! have that raised: Fly's machines start with 10,240, half of what their memory has room for. So the
//! image for Fly starts as root, with `RUN_AS`. The limit is raised, and the program begins again as that
//! user, who has no rights and never gets them back. Elsewhere the image's user is that one from the
//! start, and here is nothing to do.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rlimit::Resource;

use crate::config::ConfigError;

const NAME: &str = "RUN_AS";

/// As many as Linux gives to any process by default (`fs.nr_open`).
const FILES: u64 = 1 << 20;

/// Goes on as the user that `RUN_AS` names, where root has started this: from its beginning, with the
/// same process id. Returns where there is nothing to give up. An empty `RUN_AS` keeps root, for who needs
/// Fly's own socket, and raises the limit all the same.
///
/// # Errors
/// `RUN_AS` is no user's number, or the system does not let root become that user.
pub fn give_up() -> Result<(), ConfigError> {
    let Some(user) = std::env::var_os(NAME) else { return Ok(()) };
    if is_root().unwrap_or(false) {
        raise_limit();
    }
    if user.is_empty() {
        return Ok(());
    }
    let user = user.to_string_lossy();
    let user: u32 = user.parse().ok().filter(|user| (1..u32::MAX).contains(user)).ok_or_else(|| {
        ConfigError::value(NAME, &user, "a user's number such as 65532, and not root's, which is 0")
    })?;
    go_on_as(user).map_err(|error| ConfigError::new(format!("{NAME}={user}: {error}")))
}

fn go_on_as(user: u32) -> io::Result<()> {
    if !is_root()? {
        return Ok(());
    }
    // Groups are left behind as well; with the user go all capabilities.
    let arguments = std::env::args_os().skip(1);
    Err(Command::new(std::env::current_exe()?).args(arguments).uid(user).gid(user).exec())
}

fn is_root() -> io::Result<bool> {
    Ok(std::fs::metadata("/proc/self")?.uid() == 0)
}

/// Not every root may do that; how many sockets there is room for is told later in any case.
fn raise_limit() {
    if let Ok((soft, hard)) = rlimit::getrlimit(Resource::NOFILE) {
        let _ = rlimit::setrlimit(Resource::NOFILE, soft, hard.max(FILES));
    }
}
