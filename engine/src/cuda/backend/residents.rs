//! Resident adapters: their memory, their table, and the way there, through pinned memory and a stream of its own.

use crate::{
    adapter_weights::AdapterWeights,
    backend::RunError,
    cuda::{Device, DevicePtr, PinnedBuffer, StreamId, ops::LoraSite, plain::bytes_of_slice},
    packed_adapter::{AdapterPacker, PackedAdapter},
    spec::ModelSpec,
    step_batch::AdapterSlot,
};

use super::{byte_pool::BytePool, n_sites, products::site_index, word};

/// Most adapters resident at a time.
pub const ADAPTER_SLOTS_MAX: usize = 1024;
/// Bytes of one of the two buffers that uploads pass through.
const STAGING_BYTES: usize = 8 << 20;

/// A resident adapter's piece of the pool.
#[derive(Debug)]
struct Piece {
    offset: usize,
    n_bytes: usize,
}

/// Where a site's matrices lie in [`PackedHalves::halves`].
#[derive(Debug)]
struct Place {
    site: usize,
    a: usize,
    b: usize,
    rank: usize,
    lora_scale: f32,
}

/// An adapter as it lies on the device, but for its address.
#[derive(Debug)]
struct PackedHalves {
    /// f16 rows of every `A` and `B`, each padded with zeros to a multiple of 8.
    halves: Vec<u16>,
    places: Vec<Place>,
    n_sites: usize,
}

/// Packs adapters for a GPU.
pub(super) struct CudaPacker {
    spec: ModelSpec,
    capacity_bytes: usize,
}

impl AdapterPacker for CudaPacker {
    fn pack(&self, weights: &AdapterWeights) -> Result<PackedAdapter, RunError> {
        weights.check(&self.spec)?;
        weights.check_plain("cuda")?;
        weights.check_f16()?;
        let mut halves = Vec::new();
        let places = weights.sites.iter().map(|site| {
            let (n_out, n_in) = self.spec.linear_shape(site.site.module);
            Place {
                site: site_index(site.site),
                a: put_rows(&mut halves, &site.a, site.rank, n_in),
                b: put_rows(&mut halves, &site.b, n_out, site.rank),
                rank: site.rank,
                lora_scale: site.lora_scale,
            }
        });
        let places = places.collect();
        let n_bytes = halves.len() * 2;
        Ok(PackedAdapter::new(
            PackedHalves { halves, places, n_sites: n_sites(&self.spec) },
            n_bytes,
        ))
    }

    fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Residents {
    /// [`LoraSite`] `[ADAPTER_SLOTS_MAX][n_sites]`.
    pub(super) sites: DevicePtr,
    memory: DevicePtr,
    pool: BytePool,
    slots: Vec<Option<Piece>>,
    staging: [PinnedBuffer; 2],
    /// Which buffer is next.
    turn: usize,
}

impl Residents {
    pub(super) fn new(
        device: &mut Device,
        spec: &ModelSpec,
        n_bytes: usize,
    ) -> Result<Self, RunError> {
        let empty_table = vec![LoraSite::NONE; ADAPTER_SLOTS_MAX * n_sites(spec)];
        Ok(Self {
            sites: device.alloc_upload("adapter table", &empty_table)?,
            memory: device.alloc("adapters", n_bytes)?,
            pool: BytePool::new(n_bytes),
            slots: Vec::new(),
            staging: [device.pinned(STAGING_BYTES)?, device.pinned(STAGING_BYTES)?],
            turn: 0,
        })
    }

    pub(super) fn packer(&self, spec: &ModelSpec) -> CudaPacker {
        CudaPacker { spec: spec.clone(), capacity_bytes: self.pool.n_bytes() }
    }

    /// Enqueues the upload; steps that begin later wait for it on the device.
    pub(super) fn install(
        &mut self,
        device: &Device,
        adapter: &PackedAdapter,
    ) -> Result<AdapterSlot, RunError> {
        let form = adapter.form::<PackedHalves>()?;
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        if slot >= ADAPTER_SLOTS_MAX {
            return Err(RunError::OutOfMemory { what: "adapter slots", needed: 1, free: 0 });
        }
        let n_bytes = adapter.n_bytes();
        let free_bytes = self.pool.free_bytes();
        let Some(offset) = self.pool.take(n_bytes) else {
            return Err(RunError::OutOfMemory {
                what: "an adapter",
                needed: n_bytes,
                free: free_bytes,
            });
        };
        let base = self.memory.at(offset);
        let mut table = vec![LoraSite::NONE; form.n_sites];
        for place in &form.places {
            table[place.site] = LoraSite {
                a: base.at(place.a * 2),
                b: base.at(place.b * 2),
                rank: word(place.rank),
                lora_scale: place.lora_scale,
            };
        }
        let entry = self.sites.at(slot * table.len() * size_of::<LoraSite>());
        let sent = self
            .send(device, bytes_of_slice(&form.halves), base)
            .and_then(|()| self.send(device, bytes_of_slice(&table), entry))
            .and_then(|()| Ok(device.record(StreamId::Copy, false)?))
            .and_then(|event| Ok(device.wait_for(StreamId::Compute, &event)?));
        if let Err(error) = sent {
            self.pool.give_back(offset, n_bytes);
            return Err(error);
        }
        if free.is_none() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(Piece { offset, n_bytes });
        Ok(AdapterSlot(word(slot)))
    }

    /// No step that reads it is under way: steps are waited for.
    pub(super) fn remove(&mut self, slot: AdapterSlot) {
        if let Some(piece) = self.slots.get_mut(slot.0 as usize).and_then(Option::take) {
            self.pool.give_back(piece.offset, piece.n_bytes);
        }
    }

    /// Copies through the two buffers in turn: one is filled while the other is on its way.
    fn send(&mut self, device: &Device, bytes: &[u8], to: DevicePtr) -> Result<(), RunError> {
        for (index, piece) in bytes.chunks(STAGING_BYTES).enumerate() {
            let buffer = &mut self.staging[self.turn];
            self.turn = 1 - self.turn;
            buffer.bytes_mut()?[..piece.len()].copy_from_slice(piece);
            let to = to.at(index * STAGING_BYTES);
            device.upload_async(StreamId::Copy, buffer, to, piece.len())?;
        }
        Ok(())
    }
}

/// Appends `[n_rows, n_columns]` as f16 rows padded with zeros to a multiple of 8; returns where they begin, a multiple
/// of 8 values.
fn put_rows(halves: &mut Vec<u16>, values: &[f32], n_rows: usize, n_columns: usize) -> usize {
    let start = halves.len();
    for row in values.chunks_exact(n_columns).take(n_rows) {
        halves.extend(row.iter().map(|&value| half::f16::from_f32(value).to_bits()));
        halves.resize(halves.len().next_multiple_of(8), 0);
    }
    start
}
