//! What one process does for many tenants. The engine knows none: it sees flows, opaque numbers made from tenants here.
//!
//! ```text
//! header ──> authentication ──> Caller ──> Admission: limits of a minute, what is in progress
//!                 │                            └──> Line: share of the queue, turns ──> engine: FairOrder
//!              Tenants ── the store's tenants and keys, as old as a second
//! ```

mod administration;
mod admission;
mod authentication;
mod bucket;
mod caller;
mod directory;
mod fair_order;
mod flow_class;
mod flow_settings;
mod key_cache;
mod limiter;
mod line;
mod live_tenant;
mod meter;
mod operator_key;
mod queue_share;
mod quota;
mod refusal;

pub use administration::{KEEP_DAYS_MAX, PRIORITY_MAX, TenantChange};
pub use admission::Admission;
pub use caller::Caller;
pub use directory::Tenants;
pub use fair_order::{FLOWS_REMEMBERED_MAX, FairOrder, PASSED_OVER_MAX, TokenPrices};
pub use flow_settings::{BACKGROUND, FlowSetting, FlowSettings};
pub use limiter::{Limiter, Rate, Rates};
pub use line::{Line, SequencePlace};
pub use live_tenant::{COLD_TURNS, LiveTenant};
pub use meter::Meter;
pub use operator_key::OperatorKey;
pub use queue_share::{LiveSequence, QueueShare};
pub use quota::Quota;
pub use refusal::Refusal;
