//! A file that is kept for the moment when the system gives no other. Closed, it leaves its place to whoever
//! waits, who is told to come back; else they would wait until somebody goes, and hear nothing.

use std::fs::File;
use std::io;
use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::io::Errno;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const ANSWER: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// For a request that is still on its way.
const REQUEST_TIME: Duration = Duration::from_millis(100);

pub struct Spare(Option<File>);

impl Spare {
    pub fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Has one again, if it was lost to somebody who was faster.
    pub fn renew(&mut self) {
        if self.0.is_none() {
            *self = Self::new();
        }
    }

    /// Refuses the next client of a listener that can't accept one; false if that is not for want of files,
    /// or there is no client.
    pub async fn refuse(&mut self, listener: &TcpListener, error: &io::Error) -> bool {
        let out_of_files = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        if !out_of_files.contains(&error.raw_os_error()) {
            return false;
        }
        self.0 = None;
        let client = listener.accept().now_or_never();
        let is_there = if let Some(Ok((stream, _))) = client {
            turn_away(stream).await;
            true
        } else {
            false
        };
        self.renew();
        is_there
    }
}

async fn turn_away(mut stream: TcpStream) {
    // Where something is left unread the system resets the connection, and the answer is lost.
    let _ = timeout(REQUEST_TIME, stream.read(&mut vec![0; 4_096])).await;
    let _ = stream.try_write(ANSWER);
}
