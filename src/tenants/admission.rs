//! What a request takes of its tenant's limits, and gives back by being dropped, however it ends.
//!
//! ```text
//! begin ──> reserve tokens ──> enter the line ──> turns ──> accepted by the engine ──> dropped
//!  a request   prompt and         a place in        before the      from here on it      what was not
//!  more        longest answer     the queue         adapter         counts               used comes back
//! ```

use std::{sync::Arc, time::Instant};

use axum::{extract::FromRequestParts, http::request::Parts};
use pleach_engine::sequence::FlowId;
use pleach_store::Owner;

use super::{Caller, Line, LiveTenant, QueueShare, Refusal, meter::Meter};
use crate::{
    http::{error::ApiError, state::AppState},
    telemetry::TenantSeries,
};

/// One request in progress. The operator's is not limited.
#[derive(Debug)]
pub struct Admission {
    owner: Owner,
    tenant: Option<Arc<LiveTenant>>,
    meter: Arc<Meter>,
    n_reserved: u64,
    is_accepted: bool,
}

impl Admission {
    /// Begins a request, of whose caller `series` is measured.
    ///
    /// # Errors
    /// Too many at the same time, or in this minute.
    pub fn begin(caller: &Caller, series: Arc<TenantSeries>) -> Result<Self, Refusal> {
        let tenant = caller.tenant().cloned();
        if let Some(tenant) = &tenant {
            tenant.limiter().begin(Instant::now())?;
        }
        Ok(Self {
            owner: caller.owner.clone(),
            tenant,
            meter: Arc::new(Meter::new(series)),
            n_reserved: 0,
            is_accepted: false,
        })
    }

    /// Sets aside what the request may use: tokens of its prompts and its longest completions. To be called once.
    ///
    /// # Errors
    /// More than are left, or than there can be.
    pub fn reserve(&mut self, n_tokens: u64) -> Result<(), Refusal> {
        let Some(tenant) = &self.tenant else { return Ok(()) };
        tenant.limiter().reserve(n_tokens, Instant::now())?;
        self.n_reserved = n_tokens;
        Ok(())
    }

    /// Enters the queue with `n_sequences`.
    ///
    /// # Errors
    /// When too many of the tenant wait already.
    pub fn enter(&self, share: &Arc<QueueShare>, n_sequences: usize) -> Result<Line, Refusal> {
        Line::enter(self.tenant.as_ref(), Arc::clone(&self.meter), share, n_sequences)
    }

    /// The engine has taken the request: it counts for this minute, whatever becomes of it.
    pub fn accepted(&mut self) {
        self.is_accepted = true;
    }

    /// Whose request.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Its line in the engine's queue.
    pub fn flow(&self) -> FlowId {
        self.tenant.as_ref().map(|tenant| tenant.flow).unwrap_or_default()
    }

    /// What is measured of its tenant.
    pub fn series(&self) -> &Arc<TenantSeries> {
        self.meter.series()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        let now = Instant::now();
        let mut limiter = tenant.limiter();
        limiter.settle(self.n_reserved, self.meter.n_used(), now);
        limiter.end(self.is_accepted, now);
    }
}

/// Begins the request before its body is read.
impl FromRequestParts<Arc<AppState>> for Admission {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &Arc<AppState>,
    ) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let series = state.tenants.series_of(&caller);
        Ok(Self::begin(&caller, series)?)
    }
}
