//! Every kernel against its definition, on the CPU: the `.cu` files over an emulator (`emulator/`); says so where that cannot
//! be had.
#![expect(unsafe_code, reason = "kernels write to memory that checks read")]

use std::cell::UnsafeCell;

use emulator::{Kernels, Mode};
use pleach_engine::cuda::{
    CudaError, DevicePtr, Launch, LaunchSink,
    check::{self, Bench, CheckDevice, Sizes},
};

mod emulator;

const REGION_BYTES: usize = 64 << 20;
const ALIGN: usize = 256;

/// Compiled kernels, over host memory.
struct Emulator {
    kernels: Kernels,
    memory: UnsafeCell<Vec<u8>>,
}

impl Emulator {
    fn region(&self) -> DevicePtr {
        let begin = self.memory.get();
        // SAFETY: nothing else looks at the vector during this call.
        let begin = unsafe { (*begin).as_mut_ptr() } as usize;
        DevicePtr(begin.next_multiple_of(ALIGN) as u64)
    }

    fn check(&self, at: DevicePtr, bytes: usize) {
        let begin = self.region().0;
        assert!(
            at.0 >= begin && at.0 + bytes as u64 <= begin + REGION_BYTES as u64,
            "within the region"
        );
    }
}

impl LaunchSink for Emulator {
    fn submit(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        self.kernels.submit(launch)
    }
}

impl CheckDevice for Emulator {
    fn upload_bytes(&self, bytes: &[u8], to: DevicePtr) -> Result<(), CudaError> {
        self.check(to, bytes.len());
        // SAFETY: within the region, by the check; `bytes` is not part of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download_bytes(&self, from: DevicePtr, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.check(from, bytes.len());
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn has_wide(&self) -> bool {
        true
    }
}

#[test]
fn kernels_compute_their_definitions() {
    let mut emulator = match Kernels::load() {
        Ok(kernels) => Emulator { kernels, memory: UnsafeCell::new(vec![0; REGION_BYTES + ALIGN]) },
        Err(missing) => {
            println!("skipped: {missing}");
            return;
        }
    };
    let mut run = |mode| {
        emulator.kernels.mode = mode;
        let mut bench = Bench::new(&emulator, emulator.region(), REGION_BYTES, 7);
        check::all(&mut bench, Sizes::Small).unwrap()
    };
    let rows = run(Mode::Plain);
    for row in &rows {
        println!("{:>8.3}  {:16} {}", row.worst_ratio, row.name, row.shape);
    }
    for row in &rows {
        assert!(row.pass, "{} of {}: {}", row.name, row.shape, row.worst);
    }
    assert!(rows.len() > 50, "{} shapes", rows.len());
    for mode in [Mode::Reversed, Mode::FewCtas] {
        for (row, plain) in run(mode).iter().zip(&rows) {
            assert_eq!(row, plain, "{mode:?}");
        }
    }
}
