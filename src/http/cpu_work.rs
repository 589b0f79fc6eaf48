//! Where tokenizing, templating and parsing run: small pieces at once, large ones on blocking threads, a bounded number
//! at a time, so that neither a large prompt nor many of them keep the server from answering others.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

use super::error::ApiError;

/// Work on at most this much text runs where it is asked for: it takes less than a millisecond, about as much as
/// handing it over and back.
const INLINE_BYTES_MAX: usize = 16 << 10;

/// Most text that waits for a thread or is on one; parsed, it takes several times as much memory. More is refused, unless
/// it is alone.
const HELD_BYTES_MAX: usize = 256 << 20;

/// A bounded way onto blocking threads.
#[derive(Debug)]
pub struct CpuWork {
    permits: Arc<Semaphore>,
    held_bytes: Arc<AtomicUsize>,
}

/// Text that counts until this is dropped.
struct Held {
    n_bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Held {
    /// Counts `n_bytes`, or tells how many others are counted if they are too many beside those.
    fn take(all: &Arc<AtomicUsize>, n_bytes: usize) -> Result<Self, usize> {
        all.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            let sum = held.checked_add(n_bytes)?;
            (held == 0 || sum <= HELD_BYTES_MAX).then_some(sum)
        })?;
        Ok(Self { n_bytes, all: Arc::clone(all) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.n_bytes, Ordering::AcqRel);
    }
}

impl Default for CpuWork {
    fn default() -> Self {
        let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { permits: Arc::new(Semaphore::new(n_cores)), held_bytes: Arc::default() }
    }
}

impl CpuWork {
    /// Runs `work` on `n_bytes` of text.
    ///
    /// # Errors
    /// [`ApiError::Busy`] when too much waits already, [`ApiError::Internal`] when it panics on a blocking thread.
    pub async fn run<T: Send + 'static>(
        &self,
        n_bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if n_bytes <= INLINE_BYTES_MAX {
            return Ok(work());
        }
        let internal = |detail: String| ApiError::Internal { detail };
        let held = Held::take(&self.held_bytes, n_bytes)
            .map_err(|held_bytes| ApiError::Busy { held_bytes })?;
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|error| internal(error.to_string()))?;
        let task = tokio::task::spawn_blocking(move || {
            // They end with the work, not with a client that has gone away meanwhile.
            let (_permit, _held) = (permit, held);
            work()
        });
        task.await.map_err(|_| internal("preparing the request failed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn too_much_text_at_a_time_is_refused_and_one_large_piece_is_not() {
        let cpu = Arc::new(CpuWork::default());
        let (finish, finished) = mpsc::channel();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let first = {
            let cpu = Arc::clone(&cpu);
            let work = move || {
                began.send(()).unwrap();
                finished.recv().unwrap();
            };
            tokio::spawn(async move { cpu.run(HELD_BYTES_MAX + 1, work).await })
        };
        has_begun.await.unwrap();
        let refused = cpu.run(INLINE_BYTES_MAX + 1, || ()).await;
        assert_eq!(refused, Err(ApiError::Busy { held_bytes: HELD_BYTES_MAX + 1 }));
        assert_eq!(cpu.run(INLINE_BYTES_MAX, || 7).await, Ok(7));
        finish.send(()).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(cpu.run(HELD_BYTES_MAX, || 7).await, Ok(7));
    }
}
