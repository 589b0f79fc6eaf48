//! Over real sockets: what only a connection can show.

use std::{sync::atomic::Ordering, time::Duration};

use pleach::http::{server, state::HttpLimits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use crate::support::{Server, Setup, ids, serve};

struct Listening {
    server: Server,
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<server::Server>,
}

async fn listen(setup: Setup) -> Listening {
    let server = serve(setup).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let router = server.router.clone();
    let accepting = tokio::spawn(async move {
        let mut sockets = server::Server::default();
        sockets.run(listener, router, async { stopped.await.unwrap_or_default() }).await;
        sockets
    });
    Listening { server, address, stop, accepting }
}

fn request(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn chat(stream: bool) -> String {
    request(&format!(
        r#"{{"model":"tiny","stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
    ))
}

async fn read_all(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(10), socket.read_to_end(&mut bytes))
        .await
        .expect("the server ends")
        .unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_connection_that_vanishes_cancels_its_sequence() {
    for stream in [true, false] {
        let listening = listen(Setup { tokens: ids(&"x".repeat(200)), ..Setup::default() }).await;
        listening.server.script.lock().unwrap().step = Duration::from_millis(5);
        let mut socket = TcpStream::connect(listening.address).await.unwrap();
        socket.write_all(chat(stream).as_bytes()).await.unwrap();
        while listening.server.state.engine.stats().completion_tokens < 3 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(socket);
        listening.server.idle().await;
        assert!(listening.server.state.engine.stats().completion_tokens < 150, "stream: {stream}");
    }
}

#[tokio::test]
async fn a_sender_of_too_much_gets_to_read_the_refusal() {
    let limits = HttpLimits { body_bytes_max: 1000, ..HttpLimits::default() };
    let listening = listen(Setup { limits, ..Setup::default() }).await;
    let mut socket = TcpStream::connect(listening.address).await.unwrap();
    socket.write_all(request(&"x".repeat(4 << 20)).as_bytes()).await.unwrap();
    let text = read_all(&mut socket).await;
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("request_too_large"), "{text}");
}

#[tokio::test]
async fn a_body_that_stalls_is_given_up() {
    let limits = HttpLimits { body_time_max: Duration::from_millis(100), ..HttpLimits::default() };
    let listening = listen(Setup { limits, ..Setup::default() }).await;
    let mut socket = TcpStream::connect(listening.address).await.unwrap();
    let whole = chat(false);
    socket.write_all(&whole.as_bytes()[..whole.len() - 5]).await.unwrap();
    let text = read_all(&mut socket).await;
    assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("request_timeout"), "{text}");
}

#[tokio::test]
async fn bytes_that_are_no_http_are_answered_or_dropped_and_the_next_client_is_served() {
    let listening = listen(Setup::default()).await;
    for junk in
        [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET\r\n\r\n", &[0; 4096], b"POST / HTTP/9.9\r\n\r\n"]
    {
        let mut socket = TcpStream::connect(listening.address).await.unwrap();
        socket.write_all(junk).await.unwrap();
        socket.shutdown().await.unwrap();
        let text = read_all(&mut socket).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
    let mut socket = TcpStream::connect(listening.address).await.unwrap();
    socket
        .write_all(chat(false).replace("host: x", "host: x\r\nconnection: close").as_bytes())
        .await
        .unwrap();
    assert!(read_all(&mut socket).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn stopping_finishes_what_runs_and_closes_what_idles() {
    let listening = listen(Setup { tokens: ids(&"x".repeat(20)), ..Setup::default() }).await;
    listening.server.script.lock().unwrap().step = Duration::from_millis(5);
    let mut idle = TcpStream::connect(listening.address).await.unwrap();
    let mut busy = TcpStream::connect(listening.address).await.unwrap();
    busy.write_all(chat(true).as_bytes()).await.unwrap();
    while listening.server.state.engine.stats().completion_tokens < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    listening.server.state.stopping.store(true, Ordering::Relaxed);
    listening.stop.send(()).unwrap();
    let server = listening.accepting.await.unwrap();
    assert!(TcpStream::connect(listening.address).await.is_err(), "the port is closed");
    listening.server.state.engine.shutdown(Duration::from_secs(5)).await;
    let finishing = tokio::spawn(server.finish());
    let text = read_all(&mut busy).await;
    assert!(text.contains(r#""finish_reason":"stop""#) && text.contains("data: [DONE]"), "{text}");
    assert_eq!(read_all(&mut idle).await, "");
    finishing.await.unwrap();
}
