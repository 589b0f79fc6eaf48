//! What the commands ask a server besides completions: its list of models.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

use crate::bench::is_loopback;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the list of models may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// One entry of `GET /v1/models`.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::cli) struct ModelCard {
    /// The name to ask for.
    pub(in crate::cli) id: String,
    /// The base, for an adapter.
    #[serde(default)]
    pub(in crate::cli) parent: Option<String>,
}

/// The address without what all paths have: a slash at the end, `/v1`.
pub(in crate::cli) fn trim_url(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url).to_owned()
}

/// A client that never goes over a proxy to this machine.
pub(in crate::cli) fn http_client(url: &str) -> anyhow::Result<reqwest::Client> {
    let parsed = reqwest::Url::parse(url).with_context(|| format!("not an address: {url:?}"))?;
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("pleach/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT);
    if parsed.host_str().is_some_and(is_loopback) {
        builder = builder.no_proxy();
    }
    Ok(builder.build()?)
}

/// The models that a server lists.
pub(in crate::cli) async fn list_models(
    url: &str,
    api_key: Option<&str>,
) -> anyhow::Result<Vec<ModelCard>> {
    #[derive(Deserialize)]
    struct Listing {
        data: Vec<ModelCard>,
    }
    let address = format!("{url}/v1/models");
    let mut request = http_client(url)?.get(&address).timeout(LIST_TIMEOUT);
    if let Some(key) = api_key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.with_context(|| format!("nothing answers at {url}"))?;
    let status = response.status();
    ensure!(status.is_success(), "{address}: the server answered {status}");
    let listing: Listing =
        response.json().await.with_context(|| format!("{address}: not a list of models"))?;
    Ok(listing.data)
}

/// Whether `error` of [`list_models`] means that there is no server at all.
pub(super) fn is_nobody_there(error: &anyhow::Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
}

/// Fails unless the server takes `name`.
pub(super) fn ensure_served(models: &[ModelCard], name: &str) -> anyhow::Result<()> {
    let is_served = models.iter().any(|card| {
        // The form BASE:NAME is understood by the server and not listed.
        let is_qualified = |base: &String| format!("{base}:{}", card.id) == name;
        card.id == name || card.parent.as_ref().is_some_and(is_qualified)
    });
    let names = models.iter().map(|card| card.id.as_str()).collect::<Vec<_>>().join(", ");
    ensure!(is_served, "no model {name:?} here: one of {names}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_served_names_are_taken() {
        let card = |id: &str, parent: Option<&str>| ModelCard {
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
        };
        let models = [card("base", None), card("pirate", Some("base"))];
        for name in ["base", "pirate", "base:pirate"] {
            assert!(ensure_served(&models, name).is_ok(), "{name}");
        }
        let error = ensure_served(&models, "poet").unwrap_err().to_string();
        assert!(error.contains("poet") && error.contains("base, pirate"), "{error}");
    }

    #[test]
    fn addresses_lose_their_tail() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(trim_url(url), "http://h:1");
        }
        assert_eq!(trim_url("http://h:1/sub"), "http://h:1/sub");
    }

    #[tokio::test]
    async fn a_closed_port_is_nobody_there() {
        let error = list_models("http://127.0.0.1:1", None).await.unwrap_err();
        assert!(is_nobody_there(&error), "{error:#}");
    }
}
