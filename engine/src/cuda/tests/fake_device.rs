//! The device's rules on a device without a GPU: memory, launches, graphs.

use crate::{
    backend::RunError,
    cuda::{
        CudaError, Device, DeviceInfo, DevicePtr, Launch, LaunchSink, embedded, has_kernels,
        launch::kernel_params,
    },
};

kernel_params! {
    struct TestParams { x: DevicePtr, n: u32, step: u32 }
}

fn device(arena_bytes: u64) -> Device {
    let mut device = Device::fake(DeviceInfo {
        ordinal: 0,
        name: "fake".to_owned(),
        compute_capability: (9, 0),
        n_sms: 132,
        memory_bytes: 1 << 20,
        l2_bytes: 1 << 19,
        shared_bytes_max: 227 << 10,
        driver_version: 13_000,
    });
    device.reserve(arena_bytes).unwrap();
    device
}

/// A kernel that exists, whether or not any are embedded.
fn some_kernel() -> &'static str {
    embedded::KERNELS.first().map_or("any", |k| k.kernel)
}

#[test]
fn what_is_uploaded_is_downloaded() {
    let mut device = device(4096);
    let values: Vec<f32> = (0..100_u8).map(f32::from).collect();
    let ptr = device.alloc_upload("values", &values).unwrap();
    let mut back = vec![0.0_f32; 100];
    device.download(ptr, &mut back).unwrap();
    assert_eq!(back, values);

    device.fill(ptr.at(40), 8, 0xff).unwrap();
    let mut bits = [0_u32; 4];
    device.download(ptr.at(36), &mut bits).unwrap();
    assert_eq!(bits, [9.0_f32.to_bits(), u32::MAX, u32::MAX, 12.0_f32.to_bits()]);

    let copy = device.alloc("copy", 400).unwrap();
    device.copy(ptr, copy, 400).unwrap();
    device.download(copy, &mut back).unwrap();
    assert_eq!((back[9], back[12]), (9.0, 12.0));
}

#[test]
fn asynchronous_copies_go_through_pinned_memory() {
    let mut device = device(4096);
    let ptr = device.alloc("adapter", 1024).unwrap();
    let mut pinned = device.pinned(1024).unwrap();
    assert!(pinned.bytes_mut().unwrap().iter().all(|b| *b == 0));
    pinned.bytes_mut().unwrap()[..3].copy_from_slice(&[1, 2, 3]);
    device.upload_async(&mut pinned, ptr, 1024).unwrap();
    let uploaded = device.record(false).unwrap();
    let mut back = device.pinned(4).unwrap();
    device.download_async(ptr, &mut back, 4).unwrap();
    assert_eq!(back.bytes_mut().unwrap(), [1, 2, 3, 0]);
    assert!(uploaded.is_done().unwrap());

    // A graph would read the buffer again at every replay.
    device.begin_capture().unwrap();
    assert!(device.upload_async(&mut pinned, ptr, 1024).is_err());
    device.end_capture().unwrap();
    device.upload_async(&mut pinned, ptr, 1024).unwrap();
}

#[test]
fn a_lane_copies_from_another_thread_to_what_was_given_before() {
    let mut device = device(4096);
    let ptr = device.alloc("adapter", 1024).unwrap();
    let mut lane = device.upload_lane(100).unwrap();
    let later = device.alloc("later", 256).unwrap();
    let bytes: Vec<u8> = (0..=250).cycle().take(1024).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lane.upload(&bytes, ptr).unwrap();
            lane.finish().unwrap();
            for (at, n) in [(ptr, 1025), (DevicePtr::NULL, 1), (later, 1)] {
                let error = lane.upload(&vec![0; n], at).unwrap_err();
                assert!(matches!(error, CudaError::OutOfRange { .. }), "{error}");
            }
        });
    });
    // Nothing of what did not fit was copied.
    let mut back = [0_u8; 1024];
    device.download(ptr, &mut back).unwrap();
    assert_eq!(&back[..], &bytes[..]);
}

#[test]
fn nothing_outside_of_given_memory_is_touched() {
    let mut device = device(1024);
    let ptr = device.alloc("a", 512).unwrap();
    let mut bytes = [0_u8; 513];
    for error in [
        device.upload(&bytes, ptr).unwrap_err(),
        device.download(ptr.at(1), &mut bytes[..512]).unwrap_err(),
        device.fill(DevicePtr::NULL, 1, 0).unwrap_err(),
        device.copy(ptr, ptr.at(512), 1).unwrap_err(),
    ] {
        assert!(matches!(error, CudaError::OutOfRange { .. }), "{error}");
    }
    let RunError::OutOfMemory { what, needed, free } = device.alloc("kv", 513).unwrap_err() else {
        panic!()
    };
    assert_eq!((what, needed, free), ("kv", 513, 512));
    assert!(matches!(device.reserve(1), Err(CudaError::ArenaReserved)));
}

#[test]
fn a_graph_is_its_launches_and_replays_them() {
    let device = device(1024);
    let launch = |device: &Device, n| {
        let params = TestParams { x: DevicePtr(0x100), n, step: 7 };
        device.launch(some_kernel(), (n, 1, 1), 128, 4096, &params)
    };
    launch(&device, 1).unwrap();
    let graph =
        device.capture(|device| launch(device, 2).and_then(|()| launch(device, 3))).unwrap();
    let recorded = device.take_launches().unwrap();
    assert_eq!(recorded.len(), 1, "capturing does not run");
    assert_eq!(
        (recorded[0].kernel.as_str(), recorded[0].grid, recorded[0].block),
        (some_kernel(), (1, 1, 1), 128)
    );
    assert_eq!(recorded[0].params, [0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    graph.replay().unwrap();
    graph.replay().unwrap();
    let grids: Vec<_> = device.take_launches().unwrap().into_iter().map(|l| l.grid.0).collect();
    assert_eq!(grids, [2, 3, 2, 3]);

    // An error inside leaves the capture.
    let error = device.capture(|device| launch(device, 0)).unwrap_err();
    assert!(error.to_string().contains("blocks along x"), "{error}");
    launch(&device, 5).unwrap();
    assert_eq!(device.take_launches().unwrap().len(), 1);
}

#[test]
fn a_launch_that_does_not_fit_is_refused() {
    let device = device(1024);
    let params = TestParams { x: DevicePtr::NULL, n: 0, step: 0 };
    let good = Launch::new(some_kernel(), (8, 1, 1), 128, 0, &params);
    device.submit(&Launch { cluster: 4, early: true, ..good }).unwrap();
    let shared = device.submit(&Launch { shared_bytes: 228 << 10, ..good }).unwrap_err();
    assert!(
        shared.to_string().ends_with("bytes of shared memory: 233472, expected at most 232448"),
        "{shared}"
    );
    assert!(device.submit(&Launch { cluster: 3, ..good }).is_err());
    let unknown = device.submit(&Launch { kernel: "no_such_kernel", ..good });
    assert_eq!(unknown.is_err(), has_kernels(), "names are known when kernels are embedded");
}
