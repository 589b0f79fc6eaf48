//! The Hugging Face hub: addresses, token, redirects, and the list of a repository's files.
//!
//! Redirects are followed here and not by the client, because the answer that redirects carries the file's size and
//! SHA-256 (`x-linked-size`, `x-linked-etag`), and because the token must not travel on to another host.

use std::time::Duration;

use reqwest::{Client, Response, Url, header, redirect::Policy};
use serde::Deserialize;

use super::{
    catalog::{is_gguf, is_plain_word},
    digest::is_sha256,
    error::ModelError,
};

const ENDPOINT_DEFAULT: &str = "https://huggingface.co";
const REDIRECTS_MAX: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A transfer that stands still for so long is broken off and resumed.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// A repository's description; real ones are a few hundred kilobytes at most.
const LISTING_BYTES_MAX: usize = 8 << 20;

/// A client of one hub.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    client: Client,
    endpoint: String,
    token: Option<String>,
    /// How long an answer may take to begin when nothing else can give the file.
    pub(super) patience: Duration,
}

/// An answer, and what the redirects before it told about the file.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// SHA-256 of the whole file, from `x-linked-etag`.
    pub(super) sha256: Option<String>,
    /// Something that changes when the file does.
    pub(super) validator: Option<String>,
}

impl Hub {
    /// The hub at `endpoint`, or the public one.
    pub(super) fn new(endpoint: Option<String>, token: Option<String>) -> Result<Self, ModelError> {
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT_DEFAULT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let client = Client::builder()
            .user_agent(concat!("pleach/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL_TIMEOUT)
            .build()
            .map_err(ModelError::http(&endpoint))?;
        Ok(Self { client, endpoint, token, patience: Duration::from_secs(30) })
    }

    /// For tests: gives up on a silent transfer sooner.
    #[cfg(test)]
    pub(super) fn with_stall_timeout(mut self, timeout: Duration) -> Self {
        self.client = Client::builder()
            .redirect(Policy::none())
            .read_timeout(timeout)
            .build()
            .expect("a plain client builds");
        self
    }

    /// The address of a file.
    pub(super) fn file_url(&self, repo: &str, revision: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{revision}/{file}", self.endpoint)
    }

    /// Asks for `url` from byte `from` on; waits at most `patience` for the head of the answer.
    pub(super) async fn get(
        &self,
        url: &str,
        from: u64,
        patience: Duration,
    ) -> Result<Answer, ModelError> {
        let answer = tokio::time::timeout(patience, self.follow(url, from)).await;
        answer
            .map_err(|_| ModelError::Timeout { url: url.to_owned(), seconds: patience.as_secs() })?
    }

    async fn follow(&self, url: &str, from: u64) -> Result<Answer, ModelError> {
        let bad = |reason: String| ModelError::BadAnswer { url: url.to_owned(), reason };
        let mut next = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let home = next.origin();
        let mut sha256 = None;
        let mut validator = None;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.client.get(next.clone());
            if let Some(token) = &self.token
                && next.origin() == home
            {
                request = request.bearer_auth(token);
            }
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(ModelError::http(url))?;
            let text = |name: &str| {
                Some(response.headers().get(name)?.to_str().ok()?.trim_matches('"').to_owned())
            };
            if let Some(linked) = text("x-linked-etag") {
                sha256 = sha256.or_else(|| is_sha256(&linked).then(|| linked.to_ascii_lowercase()));
                validator = validator.or(Some(linked));
            }
            if !response.status().is_redirection() {
                validator = validator.or_else(|| text("etag"));
                return Ok(Answer { response, sha256, validator });
            }
            let location =
                text("location").ok_or_else(|| bad("a redirect without an address".to_owned()))?;
            next = next
                .join(&location)
                .map_err(|error| bad(format!("a redirect to {location:?}: {error}")))?;
        }
        Err(bad(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// The GGUF files of a repository.
    pub(super) async fn gguf_files(&self, repo: &str) -> Result<Vec<String>, ModelError> {
        #[derive(Deserialize)]
        struct Listing {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{repo}", self.endpoint);
        let mut response = self.get(&url, 0, self.patience).await?.response;
        check_status(&response, &url)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(ModelError::http(&url))? {
            body.extend_from_slice(&chunk);
            if body.len() > LISTING_BYTES_MAX {
                let reason = format!("the description is longer than {LISTING_BYTES_MAX} bytes");
                return Err(ModelError::BadAnswer { url, reason });
            }
        }
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| {
            ModelError::BadAnswer { url, reason: format!("not a list of files: {error}") }
        })?;
        let names = listing.siblings.into_iter().map(|sibling| sibling.rfilename);
        let is_usable = |name: &String| is_gguf(name) && name.split('/').all(is_plain_word);
        Ok(names.filter(is_usable).collect())
    }
}

/// Fails unless the answer is a success.
pub(super) fn check_status(response: &Response, url: &str) -> Result<(), ModelError> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let hint = match status.as_u16() {
        401 | 403 => ": set HF_TOKEN to a token that may read this repository",
        404 => ": no such repository or file",
        _ => "",
    };
    Err(ModelError::Status { url: url.to_owned(), status: status.as_u16(), hint })
}
