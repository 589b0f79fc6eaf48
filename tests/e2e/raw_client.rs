//! A client that writes bytes to a socket: it can stop in the middle, and leave without a word.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct RawClient {
    socket: TcpStream,
    /// What has come so far.
    pub(crate) received: String,
}

impl RawClient {
    pub(crate) async fn connect(server: &Server) -> Self {
        let socket = TcpStream::connect(server.address()).await.unwrap();
        Self { socket, received: String::new() }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// Sends a whole chat request.
    pub(crate) async fn chat(server: &Server, body: &Value) -> Self {
        let mut client = Self::connect(server).await;
        let body = body.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            server.address(),
            body.len()
        );
        client.write(head.as_bytes()).await;
        client.write(body.as_bytes()).await;
        client
    }

    /// Reads until `text` has come.
    ///
    /// # Panics
    /// When it does not come.
    pub(crate) async fn read_until(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.received.contains(text) {
            let count = timeout(PATIENCE, self.socket.read(&mut bytes)).await;
            let count = count.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.received));
            let count = count.unwrap();
            assert!(count > 0, "the server closed without {text:?}: {:?}", self.received);
            self.received.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    /// Reads until the server closes.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) async fn read_to_end(&mut self) {
        let mut bytes = Vec::new();
        // A connection that is cut off is closed too.
        let _ = timeout(PATIENCE, self.socket.read_to_end(&mut bytes)).await.unwrap();
        self.received.push_str(&String::from_utf8_lossy(&bytes));
    }
}
