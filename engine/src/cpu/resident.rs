//! Adapters as the CPU's kernels read them, and how they get that form.

use std::sync::Arc;

use crate::{
    adapter_weights::{AdapterWeights, OwnMatrix, SiteWeights},
    backend::RunError,
    breaks::may_break,
    model::DecoderWeights,
    packed_adapter::{AdapterPacker, PackedAdapter},
    site::{Site, TargetModule},
    spec::ModelSpec,
};

use super::{
    backend::{CpuMatrix, CpuVector},
    dora::{Workers, gains, row_norms},
    embed::ResidentEmbedding,
    memory::Arena,
    packed::{BLOCK, Dense, PackedMatrix},
    simd::LANES,
};

/// One site's weights on the device.
#[derive(Debug)]
pub(crate) struct ResidentSite {
    pub(crate) lora_scale: f32,
    /// `[R, K]`.
    pub(crate) a: PackedMatrix,
    /// `[N, R]`, columns padded to a multiple of 4 with zeros.
    pub(crate) b: PackedMatrix,
    /// `None` for plain `LoRA`.
    pub(crate) more: Option<Box<MoreOfSite>>,
}

/// What a site has beyond plain `LoRA`: vectors `[N]`, padded with zeros to whole tiles.
#[derive(Debug)]
pub(crate) struct MoreOfSite {
    /// Of `lora_B`.
    pub(crate) bias: Option<Vec<f32>>,
    /// `DoRA`'s `m[n] / ||W[n] + lora_scale (B A)[n]||`.
    pub(crate) gain: Option<Vec<f32>>,
}

impl MoreOfSite {
    fn n_bytes(&self) -> usize {
        [&self.bias, &self.gain]
            .into_iter()
            .flatten()
            .map(|values| values.len() * size_of::<f32>())
            .sum()
    }
}

impl ResidentSite {
    fn pack(weights: &SiteWeights, shape: (usize, usize), dense: Dense, arena: &mut Arena) -> Self {
        let (n_out, n_in) = shape;
        Self {
            lora_scale: weights.lora_scale,
            a: PackedMatrix::from_f32(dense, weights.rank, n_in, 4, &weights.a, arena),
            b: PackedMatrix::from_f32(dense, n_out, weights.rank, 4, &weights.b, arena),
            more: None,
        }
    }

    /// Bytes that [`Self::pack`] takes of an arena.
    fn packed_bytes(weights: &SiteWeights, shape: (usize, usize), dense: Dense) -> usize {
        let (n_out, n_in) = shape;
        PackedMatrix::f32_bytes(dense, weights.rank, n_in, 4)
            + PackedMatrix::f32_bytes(dense, n_out, weights.rank, 4)
    }

    /// Tiles of sixteen ranks.
    pub(crate) fn rank_tiles(&self) -> usize {
        self.a.n_tiles()
    }

    fn n_bytes(&self) -> usize {
        let more = self.more.as_ref().map_or(0, |more| more.n_bytes());
        self.a.n_bytes() + self.b.n_bytes() + more
    }
}

/// One adapter on the device.
#[derive(Debug)]
pub(crate) struct ResidentAdapter {
    /// By [`site_index`].
    sites: Vec<Option<ResidentSite>>,
    pub(crate) embedding: Option<ResidentEmbedding>,
    /// Instead of the base's, `[vocab, hidden]`.
    pub(crate) own_embedding: Option<Arc<PackedMatrix>>,
    /// The same for the head.
    pub(crate) own_head: Option<Arc<PackedMatrix>>,
}

impl ResidentAdapter {
    /// The site's weights, see [`site_index`].
    pub(crate) fn site(&self, index: usize) -> Option<&ResidentSite> {
        self.sites[index].as_ref()
    }

    fn n_bytes(&self) -> usize {
        let sites: usize = self.sites.iter().flatten().map(ResidentSite::n_bytes).sum();
        let embedding = self.embedding.as_ref().map_or(0, ResidentEmbedding::n_bytes);
        let own = |matrix: &Option<Arc<PackedMatrix>>| matrix.as_ref().map_or(0, |m| m.n_bytes());
        let is_one = match (&self.own_embedding, &self.own_head) {
            (Some(embedding), Some(head)) => Arc::ptr_eq(embedding, head),
            _ => false,
        };
        sites + embedding + own(&self.own_embedding) + if is_one { 0 } else { own(&self.own_head) }
    }
}

/// Place of a linear's weights in an adapter's list: layers first, then the head.
pub(crate) fn site_index(spec: &ModelSpec, site: Site) -> usize {
    let layers = spec.n_layers * TargetModule::ALL.len();
    if site.module.is_end() {
        return layers;
    }
    site.layer * TargetModule::ALL.len() + site.module.index()
}

/// The linears that share an input and are computed right after the one with this index; none after the head.
pub(crate) fn sites_after(spec: &ModelSpec, index: usize) -> std::ops::Range<usize> {
    const GATE: usize = TargetModule::GateProj.index();
    let first = index + 1;
    let n = match first % TargetModule::ALL.len() {
        0 => 3,
        GATE => 2,
        _ => 1,
    };
    first..(first + n).min(site_index(spec, Site::HEAD) + 1)
}

/// The frozen weights, shared with the decoder: what a packer reads the base from.
#[derive(Debug)]
pub(crate) struct BaseMatrices {
    /// By [`site_index`], the head last.
    pub(crate) linears: Vec<Arc<PackedMatrix>>,
    /// The head is the embedding.
    pub(crate) is_tied: bool,
}

impl BaseMatrices {
    pub(crate) fn of(weights: &DecoderWeights<CpuMatrix, CpuVector>) -> Self {
        let mut linears = Vec::new();
        for layer in &weights.layers {
            for projection in [&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down] {
                linears.extend(projection.parts.iter().map(|part| Arc::clone(&part.matrix.0)));
            }
        }
        let head = weights.head.as_ref().unwrap_or(&weights.embedding);
        linears.push(Arc::clone(&head.0));
        Self { linears, is_tied: weights.head.is_none() }
    }
}

/// Packs adapters for the CPU: what it makes is what the kernels read.
pub(crate) struct CpuPacker {
    pub(crate) spec: ModelSpec,
    pub(crate) dense: Dense,
    pub(crate) capacity_bytes: usize,
    /// `None` until a model is loaded.
    pub(crate) base: Option<Arc<BaseMatrices>>,
    pub(crate) workers: Workers,
}

impl AdapterPacker for CpuPacker {
    fn pack(&self, weights: &AdapterWeights) -> Result<PackedAdapter, RunError> {
        weights.check(&self.spec)?;
        if self.dense == Dense::F16 {
            weights.check_f16()?;
        }
        let [own_embedding, own_head] = self.own_matrices(weights)?;
        let mut sites: Vec<Option<ResidentSite>> = Vec::new();
        sites.resize_with(site_index(&self.spec, Site::HEAD) + 1, || None);
        let linears = weights.sites.iter().filter(|site| site.site != Site::EMBEDDING);
        let bytes_of = |site: &SiteWeights| {
            ResidentSite::packed_bytes(site, self.spec.linear_shape(site.site.module), self.dense)
        };
        let mut arena = Arena::new(linears.map(bytes_of).sum());
        let mut embedding = None;
        for site in &weights.sites {
            may_break();
            if site.site == Site::EMBEDDING {
                embedding = Some(ResidentEmbedding::pack(site, &self.spec, self.dense));
                continue;
            }
            let shape = self.spec.linear_shape(site.site.module);
            let mut resident = ResidentSite::pack(site, shape, self.dense, &mut arena);
            resident.more = self.more(site, own_head.as_deref())?;
            sites[site_index(&self.spec, site.site)] = Some(resident);
        }
        let adapter = ResidentAdapter { sites, embedding, own_embedding, own_head };
        let n_bytes = adapter.n_bytes();
        Ok(PackedAdapter::new(adapter, n_bytes))
    }

    fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    fn shares_cores_with_steps(&self) -> bool {
        true
    }
}

impl CpuPacker {
    fn base(&self) -> Result<&BaseMatrices, RunError> {
        let base = self.base.as_deref();
        base.ok_or_else(|| RunError::Device("no model is loaded to adapt".to_owned()))
    }

    /// Embedding and head of the adapter's own; packed once where they are one.
    fn own_matrices(
        &self,
        weights: &AdapterWeights,
    ) -> Result<[Option<Arc<PackedMatrix>>; 2], RunError> {
        if weights.own_matrices().next().is_none() {
            return Ok([None, None]);
        }
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        let pack = |own: &OwnMatrix| {
            Arc::new(PackedMatrix::from_f32(
                self.dense,
                vocab,
                hidden,
                BLOCK,
                &own.values,
                &mut Arena::new(0),
            ))
        };
        let [embedding, head] = weights.own_ends(self.base()?.is_tied)?;
        let embedding = embedding.map(|own| (own, pack(own)));
        let head = head.map(|own| match &embedding {
            Some((other, packed)) if std::ptr::eq(own, *other) => Arc::clone(packed),
            _ => pack(own),
        });
        Ok([embedding.map(|(_, packed)| packed), head])
    }

    /// What the site has beyond plain `LoRA`.
    fn more(
        &self,
        weights: &SiteWeights,
        own_head: Option<&PackedMatrix>,
    ) -> Result<Option<Box<MoreOfSite>>, RunError> {
        if weights.bias.is_none() && weights.magnitude.is_none() {
            return Ok(None);
        }
        let bias = weights.bias.clone().map(whole_tiles);
        let gain = match &weights.magnitude {
            None => None,
            Some(magnitude) => {
                let base = &self.base()?.linears[site_index(&self.spec, weights.site)];
                let own = own_head.filter(|_| weights.site == Site::HEAD);
                let norms = row_norms(self.workers, own.unwrap_or(base), weights);
                Some(whole_tiles(gains(weights.site, magnitude, &norms)?))
            }
        };
        Ok(Some(Box::new(MoreOfSite { bias, gain })))
    }
}

fn whole_tiles(mut values: Vec<f32>) -> Vec<f32> {
    values.resize(values.len().next_multiple_of(LANES), 0.0);
    values
}
