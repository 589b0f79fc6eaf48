//! The same on a real GPU, where there is one and kernels are embedded; elsewhere these tests say that they were skipped.

use super::{Random, quantized, random_rows, repack_rows};
use crate::cuda::{
    CudaError, Device, DevicePtr, Launch, LaunchSink, launch::kernel_params, probe::probe,
    tile::UNIT_K,
};

kernel_params! {
    struct TileValuesParams {
        matrix: DevicePtr,
        out: DevicePtr,
        format: u32,
        n_rows: u32,
        n_units: u32,
        pad: u32,
    }
}

fn device(arena_bytes: u64) -> Option<Device> {
    let found = probe();
    if !found.is_usable() {
        eprintln!("skipped: no device ({})", found.summary());
        return None;
    }
    let mut device = Device::open(0).unwrap();
    device.reserve(arena_bytes).unwrap();
    Some(device)
}

#[test]
fn the_gpu_decodes_every_format_bit_for_bit() {
    let Some(mut device) = device(64 << 20) else { return };
    let mut random = Random(31);
    for format in quantized() {
        let rows = random_rows(format, 130, 768, 0.1, &mut random);
        let packed = repack_rows(format, &rows, 768);
        let n_values = packed.n_out_padded * packed.n_in_padded;
        let matrix = device.alloc_upload("matrix", &packed.bytes).unwrap();
        let out = device.alloc("values", n_values * 4 + 256).unwrap();
        device.fill(out, n_values * 4 + 256, 0xff).unwrap();
        let params = TileValuesParams {
            matrix,
            out,
            format: format.ggml_type(),
            n_rows: u32::try_from(packed.n_out_padded).unwrap(),
            n_units: u32::try_from(packed.n_in_padded / UNIT_K).unwrap(),
            pad: 0,
        };
        device.launch("tile_values", (64, 1, 1), 256, 0, &params).unwrap();
        let mut values = vec![0_u32; n_values + 64];
        device.download(out, &mut values).unwrap();
        for (i, bits) in values[..n_values].iter().enumerate() {
            let (n, k) = (i / packed.n_in_padded, i % packed.n_in_padded);
            assert_eq!(*bits, packed.value(n, k).to_bits(), "{format} [{n}, {k}]");
        }
        assert!(values[n_values..].iter().all(|guard| *guard == u32::MAX), "{format}: guard bytes");
    }
}

#[test]
fn graphs_events_and_pinned_copies_work() {
    let Some(mut device) = device(16 << 20) else { return };
    let rows = random_rows(crate::quant::BlockFormat::Q4_1, 64, 64, 0.1, &mut Random(1));
    let other_rows = random_rows(crate::quant::BlockFormat::Q4_1, 64, 64, 0.1, &mut Random(2));
    let (packed, other) = (
        repack_rows(crate::quant::BlockFormat::Q4_1, &rows, 64),
        repack_rows(crate::quant::BlockFormat::Q4_1, &other_rows, 64),
    );
    let matrix = device.alloc_upload("matrix", &packed.bytes).unwrap();
    let out = device.alloc("values", 64 * 64 * 4).unwrap();
    let params = TileValuesParams { matrix, out, format: 3, n_rows: 64, n_units: 1, pad: 0 };
    let launch = Launch { early: true, ..Launch::new("tile_values", (16, 1, 1), 256, 0, &params) };

    // Two launches, so that there is an edge between kernels in the graph.
    let graph = device
        .capture(|device| device.submit(&launch).and_then(|()| device.submit(&launch)))
        .unwrap();
    let mut values = vec![1.0_f32; 64 * 64];
    device.fill(out, 64 * 64 * 4, 0).unwrap();
    device.download(out, &mut values).unwrap();
    assert!(values.iter().all(|v| *v == 0.0), "capturing does not run");

    let begin = device.record(true).unwrap();
    graph.replay().unwrap();
    let end = device.record(true).unwrap();
    assert!(begin.elapsed_ms(&end).unwrap() > 0.0 && end.is_done().unwrap());
    device.download(out, &mut values).unwrap();
    assert_eq!(values[65].to_bits(), packed.value(1, 1).to_bits());

    // The graph reads whatever lies there at replay: another matrix, uploaded beside it.
    let mut lane = device.upload_lane(1000).unwrap();
    lane.upload(&other.bytes, matrix).unwrap();
    lane.finish().unwrap();
    graph.replay().unwrap();
    let mut back = device.pinned(64 * 64 * 4).unwrap();
    device.download_async(out, &mut back, 64 * 64 * 4).unwrap();
    for (i, value) in back.bytes_mut().unwrap().chunks_exact(4).enumerate() {
        assert_eq!(value, other.value(i / 64, i % 64).to_le_bytes(), "value {i}");
    }
    // A graph outlives its device.
    drop(device);
    drop(graph);
}

#[test]
fn what_the_kernel_does_not_take_is_refused() {
    let Some(device) = device(1 << 20) else { return };
    let params = TileValuesParams {
        matrix: DevicePtr::NULL,
        out: DevicePtr::NULL,
        format: 3,
        n_rows: 0,
        n_units: 0,
        pad: 0,
    };
    let good = Launch::new("tile_values", (1, 1, 1), 32, 0, &params);
    device.submit(&good).unwrap();
    let error = device.submit(&Launch { params: &good.params[..24], ..good }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel tile_values: bytes of parameters: 24, expected 32 as the kernel takes"
    );
    assert!(device.submit(&Launch { shared_bytes: 1 << 20, ..good }).is_err());
    assert!(matches!(
        device.submit(&Launch { kernel: "none", ..good }),
        Err(CudaError::UnknownKernel(_))
    ));
    assert!(device.ctas_per_sm("tile_values", 256, 0).unwrap() >= 1);
    device.synchronize().unwrap();
    assert!(matches!(Device::open(99), Err(CudaError::NoSuchDevice { ordinal: 99, .. })));
    let info = device.info();
    assert!(
        info.n_sms > 0
            && info.memory_bytes > device.free_bytes().unwrap()
            && info.compute_capability.0 >= 8
    );
}
