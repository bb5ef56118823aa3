//! Whether all that HTTP had to write is written. Who takes a connection away from it must know: what is left
//! in HTTP's buffer is lost then, and a client may have asked for something before it asked for the socket.

use std::io::Result;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A connection as hyper uses it, which flushes when its own buffer is empty.
pub struct Flushed {
    io: TokioIo<TcpStream>,
    is_flushed: Arc<AtomicBool>,
}

impl Flushed {
    /// The connection, and where to look.
    pub fn new(stream: TcpStream) -> (Self, Arc<AtomicBool>) {
        let is_flushed = Arc::new(AtomicBool::new(true));
        (Self { io: TokioIo::new(stream), is_flushed: Arc::clone(&is_flushed) }, is_flushed)
    }

    pub fn into_inner(self) -> TcpStream {
        self.io.into_inner()
    }

    fn note(&self, is_flushed: bool) {
        self.is_flushed.store(is_flushed, Ordering::Relaxed);
    }
}

impl Read for Flushed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Flushed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.note(false);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.note(false);
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.note(true);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
