//! Breaks of long work beside the step loop.
//!
//! A step on the CPU waits for the last of its threads at each of some hundreds of operations. Whoever computes on one of
//! its cores meanwhile delays it by as long as it computes, and the system's scheduler lets it do so for milliseconds at a
//! time, whatever its priority. So long work says where it may pause, and whoever starts it says for how long.
//!
//! The points are on the way of one thread, through loops that neither know nor care who runs them: that is why this is
//! a property of the thread and no argument.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

/// Least work between two breaks. It is more where points lie farther apart, for linears of many thousand features.
pub const WORK_TIME: Duration = Duration::from_micros(250);
/// A longer time between two points was not all work: the system gave the core to others.
const WORK_TIME_MAX: Duration = Duration::from_millis(5);

/// How this thread takes breaks.
struct Breaks {
    /// How long a break is after so much work, asked when it is due.
    length: Box<dyn Fn(Duration) -> Duration>,
    working_since: Instant,
}

thread_local! {
    static BREAKS: RefCell<Option<Breaks>> = const { RefCell::new(None) };
}

/// Puts back what was before, also after a panic.
struct Restored(Option<Breaks>);

impl Drop for Restored {
    fn drop(&mut self) {
        BREAKS.set(self.0.take());
    }
}

/// Runs `work` on this thread, with a break of `length(worked)` at the first point after each [`WORK_TIME`].
pub fn with_breaks<T>(
    length: impl Fn(Duration) -> Duration + 'static,
    work: impl FnOnce() -> T,
) -> T {
    let breaks = Breaks { length: Box::new(length), working_since: Instant::now() };
    let _restored = Restored(BREAKS.replace(Some(breaks)));
    work()
}

/// A point where work that holds no lock may pause. Costs nothing to speak of on threads without breaks, and on others
/// a look at the clock.
pub fn may_break() {
    BREAKS.with_borrow_mut(|breaks| {
        let Some(breaks) = breaks else { return };
        let worked = breaks.working_since.elapsed();
        if worked < WORK_TIME {
            return;
        }
        let length = (breaks.length)(worked.min(WORK_TIME_MAX));
        if !length.is_zero() {
            std::thread::sleep(length);
        }
        breaks.working_since = Instant::now();
    });
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use super::*;

    /// Points until one makes a break.
    fn work_until_break(n_breaks: &Cell<u32>) {
        let before = n_breaks.get();
        while n_breaks.get() == before {
            may_break();
        }
    }

    #[test]
    fn a_thread_breaks_after_its_work_and_no_other_does() {
        let n_breaks = Rc::new(Cell::new(0));
        let count = Rc::clone(&n_breaks);
        let length = move |worked| {
            assert!((WORK_TIME..=WORK_TIME_MAX).contains(&worked));
            count.set(count.get() + 1);
            Duration::from_micros(1)
        };
        with_breaks(length, || {
            let began = Instant::now();
            work_until_break(&n_breaks);
            work_until_break(&n_breaks);
            assert!(began.elapsed() >= 2 * WORK_TIME);
            std::thread::spawn(may_break).join().unwrap();
        });
        std::thread::sleep(WORK_TIME);
        may_break();
        assert_eq!(n_breaks.get(), 2);
    }

    #[test]
    fn a_panic_leaves_no_breaks_behind() {
        let panicked = std::panic::catch_unwind(|| {
            with_breaks(|_| unreachable!("asked after the work"), || panic!("boom"))
        });
        assert!(panicked.is_err());
        std::thread::sleep(WORK_TIME);
        may_break();
    }
}
