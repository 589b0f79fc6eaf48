//! Sockets: accepting, time limits for slow clients, and an orderly end.
//!
//! `axum::serve` has no limits on slow clients, so the loop is our own.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, Sleep, sleep, timeout},
};

/// Most open connections; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// How long a request's head may take, and how long a connection may idle between requests.
const HEAD_TIME_MAX: Duration = Duration::from_mins(1);
/// How long a client may read nothing while there is something to read.
const STALL_TIME_MAX: Duration = Duration::from_mins(1);
/// Pause after a failed accept: when file handles run out, the next try would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is left after the engine has stopped is only writing out the last bytes.
const FLUSH_TIME_MAX: Duration = Duration::from_secs(2);

/// Accepts connections until told to stop.
#[derive(Debug)]
pub struct Server {
    connections: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Default for Server {
    fn default() -> Self {
        Self { connections: JoinSet::new(), stop: watch::Sender::new(false) }
    }
}

impl Server {
    /// Serves until `stop` resolves; then the listener is closed, idle connections end, and busy ones end after the
    /// response they are at.
    pub async fn run(
        &mut self,
        listener: TcpListener,
        router: Router,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        loop {
            while self.connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = &mut stop => break,
                _ = self.connections.join_next(), if self.connections.len() >= CONNECTIONS_MAX => continue,
                accepted = listener.accept(), if self.connections.len() < CONNECTIONS_MAX => accepted,
            };
            match accepted {
                Ok((socket, _)) => {
                    self.connections.spawn(connection(
                        socket,
                        router.clone(),
                        self.stop.subscribe(),
                    ));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        self.stop.send_replace(true);
    }

    /// Waits for the connections to end, but not for long.
    pub async fn finish(mut self) {
        let all = async { while self.connections.join_next().await.is_some() {} };
        if timeout(FLUSH_TIME_MAX, all).await.is_err() {
            tracing::warn!(open = self.connections.len(), "connections were cut off");
        }
    }
}

async fn connection(socket: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // Tokens are small and must not wait for more. A socket that is closed already fails at the first read.
    let _ = socket.set_nodelay(true);
    let io = TokioIo::new(StallGuard { socket, stalled: None });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(serving);
    // A dropped sender stops it too; the guard that this would return must not live over an await.
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stopped => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        // Clients come and go; that is no fault of ours.
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A socket that fails when its peer takes nothing for [`STALL_TIME_MAX`], so that a client which stopped reading
/// cannot hold its sequences and its memory for ever.
struct StallGuard<S> {
    socket: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> StallGuard<S> {
    fn guard<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let until = || Box::pin(tokio::time::sleep_until(Instant::now() + STALL_TIME_MAX));
        ready!(self.stalled.get_or_insert_with(until).as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.guard(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.guard(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.guard(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_cut_off() {
        let (socket, _client) = duplex(16);
        let mut guard = StallGuard { socket, stalled: None };
        let began = Instant::now();
        let error = guard.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= STALL_TIME_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_is_served() {
        let (socket, mut client) = duplex(16);
        let mut guard = StallGuard { socket, stalled: None };
        let reading = tokio::spawn(async move {
            let mut bytes = [0; 16];
            for _ in 0..4 {
                sleep(STALL_TIME_MAX / 2).await;
                client.read_exact(&mut bytes).await.unwrap();
            }
        });
        guard.write_all(&[0; 64]).await.unwrap();
        reading.await.unwrap();
    }
}
