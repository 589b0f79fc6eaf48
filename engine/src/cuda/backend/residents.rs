//! Resident adapters: their memory, their tables, and the way there, through pinned memory and a stream of its own.

use std::sync::{Arc, PoisonError};

use crate::{
    backend::RunError,
    cuda::{
        Device, DevicePtr, Event, PinnedBuffer, StreamId,
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
    site_index,
    staging::{BUFFER_BYTES, Staged, Staging},
    word,
};

/// Most adapters resident at a time.
pub const ADAPTER_SLOTS_MAX: usize = 1024;
/// Table entries that may be on their way at a time before one is waited for.
const ENTRIES_ON_THEIR_WAY: usize = 32;

/// A resident adapter's piece of the pool.
#[derive(Debug)]
struct Piece {
    offset: usize,
    n_bytes: usize,
    ends: Ends,
    /// Behind its upload, until that was seen to be done.
    uploaded: Option<Event>,
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
    staging: Arc<Staging>,
    /// Of adapters that are too large for that.
    buffers: Turns<2>,
    /// Of entries of both tables.
    entries: Turns<ENTRIES_ON_THEIR_WAY>,
}

/// Pinned buffers that are used in turn: some are filled while others are on their way.
#[derive(Debug)]
struct Turns<const N: usize> {
    buffers: [PinnedBuffer; N],
    n_bytes: usize,
    next: usize,
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
            staging: Arc::new(Staging::new(device)?),
            buffers: Turns::new(device, BUFFER_BYTES)?,
            entries: Turns::new(device, size_of::<LoraSite>() * n_sites(spec))?,
        })
    }

    pub(super) fn packer(&self, base: Option<Arc<FileMatrices>>) -> CudaPacker {
        CudaPacker {
            spec: self.spec.clone(),
            capacity_bytes: self.pool.n_bytes(),
            base,
            staging: Arc::clone(&self.staging),
        }
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
        let slot = self.begin_install(device, adapter)?;
        let piece = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        if let Some(uploaded) = piece.and_then(|piece| piece.uploaded.as_ref()) {
            device.wait_for(StreamId::Compute, uploaded)?;
        }
        Ok(slot)
    }

    /// Whether an upload is done, or waits until it is.
    pub(super) fn is_installed(&mut self, slot: AdapterSlot, wait: bool) -> Result<bool, RunError> {
        let piece = self.slots.get_mut(slot.0 as usize).and_then(Option::as_mut);
        let Some(piece) = piece else { return Ok(false) };
        let Some(uploaded) = &piece.uploaded else { return Ok(true) };
        if wait {
            uploaded.wait()?;
        } else if !uploaded.is_done()? {
            return Ok(false);
        }
        piece.uploaded = None;
        Ok(true)
    }

    /// Enqueues the upload, beside steps.
    pub(super) fn begin_install(
        &mut self,
        device: &Device,
        adapter: &PackedAdapter,
    ) -> Result<AdapterSlot, RunError> {
        let staged = adapter.form::<Staged>().ok();
        let form = match &staged {
            Some(staged) => Arc::clone(&staged.form),
            None => adapter.form::<PackedBytes>()?,
        };
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
        let uploaded = match self.upload(device, &form, staged.as_deref(), slot, base) {
            Ok(uploaded) => Some(uploaded),
            Err(error) => {
                self.pool.give_back(offset, n_bytes);
                return Err(error);
            }
        };
        if free.is_none() {
            self.slots.push(None);
        }
        self.slots[slot] =
            Some(Piece { offset, n_bytes, ends: Ends::of(&form, &self.spec), uploaded });
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
        staged: Option<&Staged>,
        slot: usize,
        base: DevicePtr,
    ) -> Result<Event, RunError> {
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
        match staged {
            Some(staged) => send_staged(device, staged, base)?,
            None => self.buffers.send(device, &form.bytes, base)?,
        }
        let at = self.sites.at(slot * size_of_val(&sites[..]));
        self.entries.send(device, bytes_of_slice(&sites), at)?;
        let at = self.own.at(slot * size_of_val(&own));
        self.entries.send(device, bytes_of_slice(&[own]), at)?;
        Ok(device.record(StreamId::Copy, false)?)
    }
}

impl<const N: usize> Turns<N> {
    fn new(device: &Device, n_bytes: usize) -> Result<Self, RunError> {
        let buffers = (0..N).map(|_| device.pinned(n_bytes)).collect::<Result<Vec<_>, _>>()?;
        let buffers = buffers.try_into().unwrap_or_else(|_| unreachable!("as many as there are"));
        Ok(Self { buffers, n_bytes, next: 0 })
    }

    fn send(&mut self, device: &Device, bytes: &[u8], to: DevicePtr) -> Result<(), RunError> {
        for (index, piece) in bytes.chunks(self.n_bytes).enumerate() {
            let buffer = &mut self.buffers[self.next];
            self.next = (self.next + 1) % N;
            buffer.bytes_mut()?[..piece.len()].copy_from_slice(piece);
            device.upload_async(
                StreamId::Copy,
                buffer,
                to.at(index * self.n_bytes),
                piece.len(),
            )?;
        }
        Ok(())
    }
}

/// Enqueues the copies of what is in pinned memory.
fn send_staged(device: &Device, staged: &Staged, to: DevicePtr) -> Result<(), RunError> {
    let mut buffers = staged.buffers.lock().unwrap_or_else(PoisonError::into_inner);
    let pieces = staged.form.bytes.chunks(BUFFER_BYTES);
    for (index, (buffer, piece)) in buffers.iter_mut().zip(pieces).enumerate() {
        device.upload_async(StreamId::Copy, buffer, to.at(index * BUFFER_BYTES), piece.len())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        adapter_weights::{AdapterWeights, SiteWeights},
        cuda::DeviceInfo,
        packed_adapter::AdapterPacker as _,
        site::TargetModule,
        spec::{Architecture, RopeScaling},
    };

    fn spec() -> ModelSpec {
        ModelSpec {
            architecture: Architecture::Llama,
            name: "wide".to_owned(),
            n_layers: 2,
            hidden: 1024,
            n_heads: 8,
            n_kv_heads: 8,
            head_dim: 128,
            ffn: 4096,
            vocab: 64,
            context: 64,
            rms_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
        }
    }

    /// More than two buffers of staging.
    fn weights(spec: &ModelSpec) -> AdapterWeights {
        let modules = [TargetModule::GateProj, TargetModule::UpProj, TargetModule::DownProj];
        let of_layer = |layer| modules.map(|module| Site { layer, module });
        let sites = (0..2).flat_map(of_layer).map(|site| {
            let ((n_out, n_in), rank) = (spec.linear_shape(site.module), 288);
            let values = |n: usize| (0..n).map(|i| (i % 251) as f32 / 64.0).collect();
            SiteWeights::lora(site, rank, 0.5, values(rank * n_in), values(n_out * rank))
        });
        AdapterWeights { sites: sites.collect(), ..AdapterWeights::default() }
    }

    #[test]
    fn what_is_staged_arrives_like_what_is_not_and_its_buffers_come_back() {
        let spec = spec();
        let info = DeviceInfo {
            ordinal: 0,
            name: "fake".to_owned(),
            compute_capability: (9, 0),
            n_sms: 132,
            memory_bytes: 1 << 30,
            l2_bytes: 1 << 20,
            shared_bytes_max: 1 << 17,
            driver_version: 12_080,
        };
        let mut device = Device::fake(info);
        device.reserve(256 << 20).unwrap();
        let mut residents = Residents::new(&mut device, &spec, 96 << 20).unwrap();
        let packer = residents.packer(None);
        let large = packer.pack(&weights(&spec)).unwrap();
        let n_bytes = large.n_bytes();
        assert!(n_bytes > 2 * BUFFER_BYTES && !n_bytes.is_multiple_of(BUFFER_BYTES));

        let plain = residents.install(&device, &large).unwrap();
        // More often than there are buffers.
        let mut slots = Vec::new();
        for _ in 0..8 {
            let staged = packer.stage(&large).unwrap();
            let slot = residents.begin_install(&device, &staged).unwrap();
            assert!(residents.is_installed(slot, false).unwrap());
            slots.push(slot);
            if slots.len() > 1 {
                residents.remove(slots.remove(0));
            }
        }
        let mut bytes = [plain, slots[0]].map(|slot| {
            let piece = residents.slots[slot.0 as usize].as_ref().unwrap();
            let mut bytes = vec![0u8; n_bytes];
            device.download(residents.memory.at(piece.offset), &mut bytes).unwrap();
            (piece.offset, bytes)
        });
        assert_ne!(bytes[0].0, bytes[1].0);
        assert!(bytes[0].1.iter().any(|&byte| byte != 0));
        assert_eq!(std::mem::take(&mut bytes[0].1), std::mem::take(&mut bytes[1].1));
    }
}
