//! SIGTERM: running requests finish or are cancelled within the grace, and the program ends with exit code 0.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    raw_client::RawClient,
    server::{BASE, Server, chat_body},
};

/// Longer than a busy machine needs to end a process that is ready to end.
const END_TIME_MAX: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_stream_that_can_finish_within_the_grace_does() {
    let mut server = Server::start(&["--shutdown-grace", "60"]);
    let mut body = chat_body(BASE, "Tell me a story.", 200);
    body["stream"] = json!(true);
    body["ignore_eos"] = json!(true);
    let mut client = RawClient::chat(&server, &body).await;
    client.read_until("\"content\":").await;
    server.terminate();
    client.read_until("\"finish_reason\":\"length\"").await;
    client.read_until("data: [DONE]").await;
    assert_eq!(server.wait(END_TIME_MAX), Some(0), "{}", server.log());
    assert!(TcpStream::connect(server.address()).await.is_err());
}

#[tokio::test]
async fn a_stream_that_cannot_is_cancelled_and_told() {
    let mut server = Server::start(&["--shutdown-grace", "0.3"]);
    let mut body = chat_body(BASE, "Tell me a story.", 8000);
    body["stream"] = json!(true);
    body["ignore_eos"] = json!(true);
    let mut client = RawClient::chat(&server, &body).await;
    client.read_until("\"content\":").await;
    server.terminate();
    client.read_to_end().await;
    assert!(client.received.contains("shutting_down"), "{}", client.received);
    assert!(!client.received.contains("\"finish_reason\":\"length\""));
    assert_eq!(server.wait(END_TIME_MAX), Some(0), "{}", server.log());
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    let mut server = Server::start(&["--shutdown-grace", "600"]);
    // A connection that is kept alive must not keep the process.
    server.assert_serves().await;
    server.terminate();
    assert_eq!(server.wait(END_TIME_MAX), Some(0), "{}", server.log());
}
