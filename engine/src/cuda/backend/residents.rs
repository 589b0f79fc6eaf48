//! Resident adapters: their memory, their tables, and the way there, for any thread, beside steps.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::{
    backend::RunError,
    cuda::{
        Device, DevicePtr, UploadLane,
        ops::{LoraSite, OwnMatrices},
        plain::bytes_of_slice,
    },
    packed_adapter::{PackedAdapter, ResidentAdapters},
    site::Site,
    spec::ModelSpec,
    step_batch::AdapterSlot,
};

use super::{byte_pool::BytePool, n_sites, packer::PackedBytes, site_index, word};

/// Most adapters resident at a time.
pub const ADAPTER_SLOTS_MAX: usize = 1024;
/// Adapters that are copied at a time.
const LANES: usize = 4;
/// Bytes of a lane's pinned buffers, of which it has two.
const LANE_BUFFER_BYTES: usize = 4 << 20;

/// A resident adapter's piece of the pool.
#[derive(Clone, Copy, Debug)]
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
    capacity_bytes: usize,
    books: Mutex<Books>,
    lanes: Lanes,
}

/// Who has which slot and which piece of memory.
#[derive(Debug)]
struct Books {
    pool: BytePool,
    slots: Vec<Option<Piece>>,
}

/// The lanes that nobody uses.
#[derive(Debug)]
struct Lanes {
    free: Mutex<Vec<UploadLane>>,
    came_back: Condvar,
}

impl Residents {
    pub(super) fn new(
        device: &mut Device,
        spec: &ModelSpec,
        n_bytes: usize,
    ) -> Result<Self, RunError> {
        let no_sites = vec![LoraSite::NONE; ADAPTER_SLOTS_MAX * n_sites(spec)];
        let none_own = vec![OwnMatrices::NONE; ADAPTER_SLOTS_MAX];
        let sites = device.alloc_upload("adapter table", &no_sites)?;
        let own = device.alloc_upload("adapter table", &none_own)?;
        let memory = device.alloc("adapters", n_bytes)?;
        let pool = BytePool::new(n_bytes);
        let lanes = (0..LANES).map(|_| device.upload_lane(LANE_BUFFER_BYTES));
        Ok(Self {
            spec: spec.clone(),
            sites,
            own,
            memory,
            capacity_bytes: pool.n_bytes(),
            books: Mutex::new(Books { pool, slots: Vec::new() }),
            lanes: Lanes {
                free: Mutex::new(lanes.collect::<Result<_, _>>()?),
                came_back: Condvar::new(),
            },
        })
    }

    pub(super) fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// Where the adapter in a slot acts at the ends of the model; nowhere if the slot is empty.
    pub(super) fn ends(&self, slot: AdapterSlot) -> Ends {
        let piece = self.books().slots.get(slot.0 as usize).copied().flatten();
        piece.map_or(Ends::default(), |piece| piece.ends)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    /// A slot and memory for an adapter that nobody can name yet.
    fn take(&self, n_bytes: usize, ends: Ends) -> Result<(usize, Piece), RunError> {
        let mut books = self.books();
        let slot = books.slots.iter().position(Option::is_none).unwrap_or(books.slots.len());
        if slot >= ADAPTER_SLOTS_MAX {
            return Err(RunError::OutOfMemory { what: "adapter slots", needed: 1, free: 0 });
        }
        let free = books.pool.free_bytes();
        let Some(offset) = books.pool.take(n_bytes) else {
            return Err(RunError::OutOfMemory { what: "an adapter", needed: n_bytes, free });
        };
        if slot == books.slots.len() {
            books.slots.push(None);
        }
        let piece = Piece { offset, n_bytes, ends };
        books.slots[slot] = Some(piece);
        Ok((slot, piece))
    }

    /// An adapter's arrays to `base`, and its entries of both tables. Waits until they are there.
    fn upload(&self, form: &PackedBytes, slot: usize, base: DevicePtr) -> Result<(), RunError> {
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
        let sites_at = self.sites.at(slot * size_of_val(&sites[..]));
        let own_at = self.own.at(slot * size_of_val(&own));
        self.lanes.with(|lane| {
            let enqueued = lane
                .upload(&form.bytes, base)
                .and_then(|()| lane.upload(bytes_of_slice(&sites), sites_at))
                .and_then(|()| lane.upload(bytes_of_slice(&[own]), own_at));
            // Also after an error: the memory is soon another's, and nothing may still be on its way there.
            let arrived = lane.finish();
            Ok(enqueued.and(arrived)?)
        })
    }
}

impl ResidentAdapters for Residents {
    fn install(&self, adapter: &PackedAdapter) -> Result<AdapterSlot, RunError> {
        let form = adapter.form::<PackedBytes>()?;
        let (slot, piece) = self.take(adapter.n_bytes(), Ends::of(&form, &self.spec))?;
        let number = AdapterSlot(word(slot));
        if let Err(error) = self.upload(&form, slot, self.memory.at(piece.offset)) {
            self.remove(number);
            return Err(error);
        }
        Ok(number)
    }

    fn remove(&self, slot: AdapterSlot) {
        let mut books = self.books();
        if let Some(piece) = books.slots.get_mut(slot.0 as usize).and_then(Option::take) {
            books.pool.give_back(piece.offset, piece.n_bytes);
        }
    }
}

impl Lanes {
    /// Does something with a lane, as soon as one is free.
    fn with<T>(&self, action: impl FnOnce(&mut UploadLane) -> T) -> T {
        let mut lane = {
            let mut free = lock(&self.free);
            loop {
                if let Some(lane) = free.pop() {
                    break lane;
                }
                free = self.came_back.wait(free).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let result = action(&mut lane);
        lock(&self.free).push(lane);
        self.came_back.notify_one();
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        adapter_weights::{AdapterWeights, SiteWeights},
        cuda::{DeviceInfo, backend::packer::CudaPacker},
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

    /// More than the buffers of a lane.
    fn weights(spec: &ModelSpec, seed: usize) -> AdapterWeights {
        let modules = [TargetModule::GateProj, TargetModule::UpProj, TargetModule::DownProj];
        let of_layer = |layer| modules.map(|module| Site { layer, module });
        let sites = (0..2).flat_map(of_layer).map(|site| {
            let ((n_out, n_in), rank) = (spec.linear_shape(site.module), 288);
            let values = |n: usize| (0..n).map(|i| ((i + seed) % 251) as f32 / 64.0).collect();
            SiteWeights::lora(site, rank, 0.5, values(rank * n_in), values(n_out * rank))
        });
        AdapterWeights { sites: sites.collect(), ..AdapterWeights::default() }
    }

    fn device() -> Device {
        Device::fake(DeviceInfo {
            ordinal: 0,
            name: "fake".to_owned(),
            compute_capability: (9, 0),
            n_sms: 132,
            memory_bytes: 1 << 30,
            l2_bytes: 1 << 20,
            shared_bytes_max: 1 << 17,
            driver_version: 12_080,
        })
    }

    /// From several threads at a time, each larger than a lane's buffers: every adapter's bytes are where its slot says.
    #[test]
    fn adapters_arrive_whole_from_several_threads() {
        let spec = spec();
        let mut device = device();
        device.reserve(512 << 20).unwrap();
        let residents = Residents::new(&mut device, &spec, 256 << 20).unwrap();
        let of_device = CudaPacker {
            spec: spec.clone(),
            capacity_bytes: residents.capacity_bytes(),
            base: None,
        };
        let packed: Vec<_> =
            (1..7).map(|seed| of_device.pack(&weights(&spec, seed)).unwrap()).collect();
        let n_bytes = packed[0].n_bytes();
        assert!(n_bytes > 2 * LANE_BUFFER_BYTES && !n_bytes.is_multiple_of(LANE_BUFFER_BYTES));

        // More at a time than there are lanes, and slots that are used again.
        for _ in 0..2 {
            let slots: Vec<AdapterSlot> = std::thread::scope(|scope| {
                let residents = &residents;
                let install = |packed| scope.spawn(move || residents.install(packed).unwrap());
                let threads: Vec<_> = packed.iter().map(install).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            for (slot, packed) in slots.iter().zip(&packed) {
                let piece = residents.books().slots[slot.0 as usize].unwrap();
                let mut found = vec![0u8; n_bytes];
                device.download(residents.memory.at(piece.offset), &mut found).unwrap();
                let form = packed.form::<PackedBytes>().unwrap();
                assert!(found == form.bytes, "slot {}", slot.0);
                let n_sites = n_sites(&spec);
                let mut table = vec![LoraSite::NONE; n_sites];
                let entry = slot.0 as usize * n_sites * size_of::<LoraSite>();
                device.download(residents.sites.at(entry), &mut table).unwrap();
                for site in &form.sites {
                    let expected = residents.memory.at(piece.offset + site.a);
                    assert_eq!(table[site.index].a, expected, "slot {}", slot.0);
                }
            }
            for slot in slots {
                residents.remove(slot);
                // Twice does no harm.
                residents.remove(slot);
            }
            assert_eq!(residents.books().pool.free_bytes(), residents.capacity_bytes());
        }
    }

    #[test]
    fn what_cannot_be_copied_leaves_nothing() {
        let spec = spec();
        let mut device = device();
        device.reserve(256 << 20).unwrap();
        let mut residents = Residents::new(&mut device, &spec, 64 << 20).unwrap();
        // Beyond what the device gave out.
        residents.memory = residents.memory.at(128 << 20);
        let of_device = CudaPacker { spec: spec.clone(), capacity_bytes: 64 << 20, base: None };
        let packed = of_device.pack(&weights(&spec, 1)).unwrap();
        let error = residents.install(&packed).unwrap_err();
        assert!(matches!(error, RunError::Device(_)), "{error}");
        assert_eq!(residents.books().pool.free_bytes(), residents.capacity_bytes());
        assert!(residents.books().slots.iter().all(Option::is_none));
    }
}
