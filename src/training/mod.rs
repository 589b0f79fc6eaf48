//! From files that tenants send to adapters that they are served.
//!
//! ```text
//! upload ──> FileChecks: every row is read ──> a file of the store
//! ```

mod blob_source;
mod file_checks;

pub use blob_source::BlobSource;
pub use file_checks::{CheckedFile, FileChecks, FileProblem};
