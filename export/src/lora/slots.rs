//! Which sites of the graph take an adapter's factors.

use std::collections::BTreeSet;

use pleach_engine::{adapter_weights::AdapterWeights, site::Site};

use crate::error::ExportError;

/// The sites of all adapters together: an input that nobody fills costs time at every step.
///
/// # Errors
/// [`ExportError::NoInput`] for what two factors cannot express.
pub(crate) fn slots<'a>(
    adapters: impl IntoIterator<Item = (&'a str, &'a AdapterWeights)>,
) -> Result<BTreeSet<Site>, ExportError> {
    let mut sites = BTreeSet::new();
    for (name, weights) in adapters {
        let refuse = |site, kind| ExportError::NoInput { name: name.to_owned(), site, kind };
        if let Some((site, _)) = weights.own_matrices().next() {
            return Err(refuse(site, "a whole matrix of the adapter's own"));
        }
        for weights in &weights.sites {
            let kind = match weights.site {
                Site::EMBEDDING => Some("an adapter of the embedding"),
                Site::HEAD => Some("an adapter of the head"),
                _ if weights.magnitude.is_some() => Some("DoRA"),
                _ if weights.bias.is_some() => Some("`lora_bias`"),
                _ => None,
            };
            if let Some(kind) = kind {
                return Err(refuse(weights.site, kind));
            }
            sites.insert(weights.site);
        }
    }
    Ok(sites)
}
