//! Where tokenizing, templating and parsing run: small pieces at once, large ones on blocking threads, a bounded number
//! at a time, so that neither a large prompt nor many of them keep the server from answering others.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::error::ApiError;

/// Work on at most this much text runs where it is asked for: it takes less than a millisecond, about as much as
/// handing it over and back.
const INLINE_BYTES_MAX: usize = 16 << 10;

/// A bounded way onto blocking threads.
#[derive(Debug)]
pub struct CpuWork {
    permits: Arc<Semaphore>,
}

impl Default for CpuWork {
    fn default() -> Self {
        let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { permits: Arc::new(Semaphore::new(n_cores)) }
    }
}

impl CpuWork {
    /// Runs `work` on `n_bytes` of text.
    ///
    /// # Errors
    /// [`ApiError::Internal`] when it panics on a blocking thread.
    pub async fn run<T: Send + 'static>(
        &self,
        n_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if n_bytes <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        let internal = |detail: String| ApiError::Internal { detail };
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|error| internal(error.to_string()))?;
        let task = tokio::task::spawn_blocking(move || {
            // The permit ends with the work, not with a client that has gone away meanwhile.
            let _permit = permit;
            work()
        });
        task.await.map_err(|_| internal("preparing the request failed".to_owned()))
    }
}
