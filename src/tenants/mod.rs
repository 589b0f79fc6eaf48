//! What one process does for many tenants. The engine knows none: it sees flows, opaque numbers made from tenants here.

mod caller;
mod fair_order;
mod flow_class;
mod flow_settings;

pub use caller::Caller;
pub use fair_order::{FLOWS_REMEMBERED_MAX, FairOrder, PASSED_OVER_MAX, TokenPrices};
pub use flow_settings::{FlowSetting, FlowSettings};
