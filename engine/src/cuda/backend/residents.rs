//! Resident adapters: their memory, their tables, and the way there, through pinned memory and a stream of its own.

use std::sync::Arc;

use crate::{
    backend::RunError,
    cuda::{
        Device, DevicePtr, PinnedBuffer, StreamId,
        ops::{LoraSite, OwnMatrices},
        plain::bytes_of_slice,
    },
    model::FileMatrices,
    packed_adapter::PackedAdapter,
    site::Site,
    spec::ModelSpec,
    step_batch::AdapterSlot,
};

use super::{
    byte_pool::BytePool,
    n_sites,
    packer::{CudaPacker, PackedBytes},
    site_index, word,
};

/// Most adapters resident at a time.
pub const ADAPTER_SLOTS_MAX: usize = 1024;
/// Bytes of one of the two buffers that uploads pass through.
const STAGING_BYTES: usize = 8 << 20;

/// A resident adapter's piece of the pool.
#[derive(Debug)]
struct Piece {
    offset: usize,
    n_bytes: usize,
    ends: Ends,
}

/// Where an adapter acts at the ends of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// `LoRA` on the embedding, or an embedding of its own.
    pub(super) embedding: bool,
    /// `LoRA` on the head.
    pub(super) head: bool,
    /// A head of its own.
    pub(super) own_head: bool,
}

impl Ends {
    fn of(form: &PackedBytes, spec: &ModelSpec) -> Self {
        let has = |site| form.sites.iter().any(|packed| packed.index == site_index(spec, site));
        Self {
            embedding: form.own_embedding.is_some() || has(Site::EMBEDDING),
            head: has(Site::HEAD),
            own_head: form.own_head.is_some(),
        }
    }

    pub(super) fn any(self) -> bool {
        self.embedding || self.head || self.own_head
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Residents {
    spec: ModelSpec,
    /// [`LoraSite`] `[ADAPTER_SLOTS_MAX][n_sites]`.
    pub(super) sites: DevicePtr,
    /// [`OwnMatrices`] `[ADAPTER_SLOTS_MAX]`.
    pub(super) own: DevicePtr,
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
        let no_sites = vec![LoraSite::NONE; ADAPTER_SLOTS_MAX * n_sites(spec)];
        let none_own = vec![OwnMatrices::NONE; ADAPTER_SLOTS_MAX];
        Ok(Self {
            spec: spec.clone(),
            sites: device.alloc_upload("adapter table", &no_sites)?,
            own: device.alloc_upload("adapter table", &none_own)?,
            memory: device.alloc("adapters", n_bytes)?,
            pool: BytePool::new(n_bytes),
            slots: Vec::new(),
            staging: [device.pinned(STAGING_BYTES)?, device.pinned(STAGING_BYTES)?],
            turn: 0,
        })
    }

    pub(super) fn packer(&self, base: Option<Arc<FileMatrices>>) -> CudaPacker {
        CudaPacker { spec: self.spec.clone(), capacity_bytes: self.pool.n_bytes(), base }
    }

    /// Where the adapter in a slot acts at the ends of the model; nowhere if the slot is empty.
    pub(super) fn ends(&self, slot: AdapterSlot) -> Ends {
        let piece = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        piece.map_or(Ends::default(), |piece| piece.ends)
    }

    /// Enqueues the upload; steps that begin later wait for it on the device.
    pub(super) fn install(
        &mut self,
        device: &Device,
        adapter: &PackedAdapter,
    ) -> Result<AdapterSlot, RunError> {
        let form = adapter.form::<PackedBytes>()?;
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
        if let Err(error) = self.upload(device, &form, slot, self.memory.at(offset)) {
            self.pool.give_back(offset, n_bytes);
            return Err(error);
        }
        if free.is_none() {
            self.slots.push(None);
        }
        self.slots[slot] = Some(Piece { offset, n_bytes, ends: Ends::of(&form, &self.spec) });
        Ok(AdapterSlot(word(slot)))
    }

    /// No step that reads it is under way: steps are waited for.
    pub(super) fn remove(&mut self, slot: AdapterSlot) {
        if let Some(piece) = self.slots.get_mut(slot.0 as usize).and_then(Option::take) {
            self.pool.give_back(piece.offset, piece.n_bytes);
        }
    }

    /// An adapter's arrays to `base`, and its entries of both tables.
    fn upload(
        &mut self,
        device: &Device,
        form: &PackedBytes,
        slot: usize,
        base: DevicePtr,
    ) -> Result<(), RunError> {
        let at = |offset: Option<usize>| offset.map_or(DevicePtr::NULL, |offset| base.at(offset));
        let mut sites = vec![LoraSite::NONE; form.n_sites];
        for site in &form.sites {
            sites[site.index] = LoraSite {
                a: base.at(site.a),
                b: base.at(site.b),
                gain: at(site.gain),
                shift: at(site.shift),
                rank: word(site.rank),
                lora_scale: site.lora_scale,
            };
        }
        let own = OwnMatrices { embedding: at(form.own_embedding), head: at(form.own_head) };
        self.send(device, &form.bytes, base)?;
        self.send(device, bytes_of_slice(&sites), self.sites.at(slot * size_of_val(&sites[..])))?;
        self.send(device, bytes_of_slice(&[own]), self.own.at(slot * size_of_val(&own)))?;
        let event = device.record(StreamId::Copy, false)?;
        Ok(device.wait_for(StreamId::Compute, &event)?)
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
