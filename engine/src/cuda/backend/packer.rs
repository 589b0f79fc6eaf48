//! Adapters in the form in which they lie on the device: packed on any thread, beside the step loop.

use std::{num::NonZero, sync::Arc, thread};

use crate::{
    adapter_weights::{AdapterWeights, OwnMatrix, SiteWeights},
    backend::{MatrixSource, RunError},
    cpu::{
        Isa,
        dora::{Workers, gains, source_norms},
    },
    model::FileMatrices,
    packed_adapter::{AdapterPacker, PackedAdapter},
    quant::BlockFormat,
    site::{Site, TargetModule},
    spec::ModelSpec,
};

use super::{ROW_ALIGN, n_sites, site_index};

/// f16 rows of adapters' factors are padded to a multiple of this.
const FACTOR_ALIGN: usize = 8;
/// Every array begins at a multiple of so many bytes.
const ARRAY_ALIGN: usize = 16;

/// An adapter as it lies on the device, but for its address. Offsets are bytes.
#[derive(Debug)]
pub(super) struct PackedBytes {
    /// All arrays, each at a multiple of [`ARRAY_ALIGN`].
    pub(super) bytes: Vec<u8>,
    pub(super) sites: Vec<PackedSite>,
    /// Matrices instead of the base's, f16 `[vocab][hidden rounded up to 64]`.
    pub(super) own_embedding: Option<usize>,
    pub(super) own_head: Option<usize>,
    /// Sites of a slot.
    pub(super) n_sites: usize,
}

/// What a [`crate::cuda::ops::LoraSite`] is made of.
#[derive(Debug)]
pub(super) struct PackedSite {
    /// By [`site_index`].
    pub(super) index: usize,
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) gain: Option<usize>,
    pub(super) shift: Option<usize>,
    pub(super) rank: usize,
    pub(super) lora_scale: f32,
}

/// Packs adapters for a GPU.
pub(super) struct CudaPacker {
    pub(super) spec: ModelSpec,
    pub(super) capacity_bytes: usize,
    /// The base, for `DoRA`'s norms: the device's copy is in the order of tensor cores, and nobody but the step loop may
    /// read it. `None` for a model that is no file.
    pub(super) base: Option<Arc<FileMatrices>>,
}

impl AdapterPacker for CudaPacker {
    fn pack(&self, weights: &AdapterWeights) -> Result<PackedAdapter, RunError> {
        weights.check(&self.spec)?;
        weights.check_f16()?;
        let mut bytes = Vec::new();
        let [own_embedding, own_head] = self.put_own(&mut bytes, weights)?;
        let sites = weights
            .sites
            .iter()
            .map(|site| self.put_site(&mut bytes, site, own_head))
            .collect::<Result<_, _>>()?;
        let n_bytes = bytes.len();
        let form =
            PackedBytes { bytes, sites, own_embedding, own_head, n_sites: n_sites(&self.spec) };
        Ok(PackedAdapter::new(form, n_bytes))
    }

    fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }
}

impl CudaPacker {
    fn base(&self) -> Result<&FileMatrices, RunError> {
        let base = self.base.as_deref();
        base.ok_or_else(|| RunError::Device("no model file is loaded to adapt".to_owned()))
    }

    /// Embedding and head of the adapter's own; where they are one, both have one offset.
    fn put_own(
        &self,
        bytes: &mut Vec<u8>,
        weights: &AdapterWeights,
    ) -> Result<[Option<usize>; 2], RunError> {
        if weights.own_matrices().next().is_none() {
            return Ok([None, None]);
        }
        let hidden = self.spec.hidden;
        let mut put = |own: &OwnMatrix| put_rows(bytes, &own.values, hidden, ROW_ALIGN);
        let [embedding, head] = weights.own_ends(self.base()?.is_tied())?;
        let embedding = embedding.map(|own| (own, put(own)));
        let head = head.map(|own| match embedding {
            Some((other, offset)) if std::ptr::eq(own, other) => offset,
            _ => put(own),
        });
        Ok([embedding.map(|(_, offset)| offset), head])
    }

    fn put_site(
        &self,
        bytes: &mut Vec<u8>,
        weights: &SiteWeights,
        own_head: Option<usize>,
    ) -> Result<PackedSite, RunError> {
        let (site, rank) = (weights.site, weights.rank);
        let gain = match &weights.magnitude {
            None => None,
            Some(magnitude) => {
                let own = own_head.filter(|_| site == Site::HEAD).map(|offset| &bytes[offset..]);
                Some(gains(site, magnitude, &self.norms(weights, own)?)?)
            }
        };
        let shift = weights.bias.as_ref().map(|bias| -> Vec<f32> {
            bias.iter().map(|value| weights.lora_scale * value).collect()
        });
        let (_, n_in) = self.spec.linear_shape(site.module);
        Ok(PackedSite {
            index: site_index(&self.spec, site),
            a: if site == Site::EMBEDDING {
                put_rows(bytes, &transposed(&weights.a, n_in), rank, FACTOR_ALIGN)
            } else {
                put_rows(bytes, &weights.a, n_in, FACTOR_ALIGN)
            },
            b: put_rows(bytes, &weights.b, rank, FACTOR_ALIGN),
            gain: gain.map(|values| put_floats(bytes, &values)),
            shift: shift.map(|values| put_floats(bytes, &values)),
            rank,
            lora_scale: weights.lora_scale,
        })
    }

    /// Norms of the rows of the adapted weight; `own` is the packed head that stands for the base's.
    fn norms(&self, weights: &SiteWeights, own: Option<&[u8]>) -> Result<Vec<f32>, RunError> {
        // Half of the processors: steps go on meanwhile.
        let n_threads = thread::available_parallelism().map_or(1, NonZero::get).div_ceil(2);
        let workers = Workers { isa: Isa::detect(), n_threads };
        let Some(own) = own else {
            return self
                .base()?
                .with(weights.site, |source| source_norms(workers, source, weights));
        };
        let (n_out, n_in) = self.spec.linear_shape(TargetModule::LmHead);
        let row_bytes = n_in.next_multiple_of(ROW_ALIGN) * 2;
        let row = |n: usize| &own[n * row_bytes..][..n_in * 2];
        let source =
            MatrixSource { name: "lm_head", format: BlockFormat::F16, n_out, n_in, row: &row };
        Ok(source_norms(workers, &source, weights))
    }
}

/// Appends rows of `n_columns` values as f16, each padded with zeros to a multiple of `align` values; returns where they
/// begin.
fn put_rows(bytes: &mut Vec<u8>, values: &[f32], n_columns: usize, align: usize) -> usize {
    let start = bytes.len();
    let row_bytes = n_columns.next_multiple_of(align) * 2;
    bytes.reserve(values.len() / n_columns * row_bytes);
    for (index, row) in values.chunks_exact(n_columns).enumerate() {
        bytes.extend(row.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()));
        bytes.resize(start + (index + 1) * row_bytes, 0);
    }
    start
}

/// Appends f32 values, padded with zeros to whole [`ARRAY_ALIGN`]; returns where they begin.
fn put_floats(bytes: &mut Vec<u8>, values: &[f32]) -> usize {
    let start = bytes.len();
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(ARRAY_ALIGN), 0);
    start
}

/// `[n_rows, n_columns]` as `[n_columns, n_rows]`.
fn transposed(values: &[f32], n_columns: usize) -> Vec<f32> {
    let n_rows = values.len() / n_columns;
    let mut out = vec![0.0; values.len()];
    for (row, values) in values.chunks_exact(n_columns).enumerate() {
        for (column, &value) in values.iter().enumerate() {
            out[column * n_rows + row] = value;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Architecture, RopeScaling};

    fn packer() -> CudaPacker {
        let spec = ModelSpec {
            architecture: Architecture::Llama,
            name: "tiny".to_owned(),
            n_layers: 2,
            hidden: 36,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 18,
            ffn: 40,
            vocab: 5,
            context: 64,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
        };
        CudaPacker { spec, capacity_bytes: 1 << 20, base: None }
    }

    /// Values that f16 holds, all different.
    fn counting(n: usize, from: u16) -> Vec<f32> {
        (0..n).zip(from..).map(|(_, value)| f32::from(value) / 4.0).collect()
    }

    /// Whether a value of an array is this one.
    fn is_at(form: &PackedBytes, array: usize, index: usize, value: f32) -> bool {
        let at = array + index * 2;
        form.bytes[at..at + 2] == half::f16::from_f32(value).to_le_bytes()
    }

    #[test]
    fn arrays_are_aligned_padded_and_where_their_site_says() {
        let site = Site { layer: 1, module: TargetModule::QProj };
        let (n_out, n_in, rank) = (36, 36, 3);
        let (a, b) = (counting(rank * n_in, 1), counting(n_out * rank, 500));
        let mut linear = SiteWeights::lora(site, rank, 0.5, a.clone(), b.clone());
        linear.bias = Some(counting(n_out, 9));
        // `[R, V]`, `[hidden, R]`.
        let of_embedding = counting(rank * 5, 700);
        let embedding =
            SiteWeights::lora(Site::EMBEDDING, rank, 2.0, of_embedding.clone(), counting(108, 0));
        let mut sites = vec![linear, embedding];
        sites.sort_by_key(|site| site.site);
        let weights = AdapterWeights { sites, ..AdapterWeights::default() };
        let packed = packer().pack(&weights).unwrap();
        let form = packed.form::<PackedBytes>().unwrap();

        assert_eq!((form.n_sites, packed.n_bytes()), (2 * 7 + 2, form.bytes.len()));
        let [embedding, linear] = &form.sites[..] else { panic!("two sites") };
        assert_eq!((embedding.index, linear.index), (15, 7));
        assert_eq!((linear.rank, linear.lora_scale, linear.gain), (3, 0.5, None));
        let shift = linear.shift.unwrap();
        for at in [linear.a, linear.b, embedding.a, embedding.b, shift] {
            assert!(at.is_multiple_of(ARRAY_ALIGN));
        }
        for (r, row) in a.chunks_exact(n_in).enumerate() {
            for (k, value) in row.iter().chain(&[0.0; 4]).enumerate() {
                assert!(is_at(&form, linear.a, r * 40 + k, *value), "A[{r}, {k}]");
            }
        }
        for (n, row) in b.chunks_exact(rank).enumerate() {
            for (r, value) in row.iter().chain(&[0.0; 5]).enumerate() {
                assert!(is_at(&form, linear.b, n * 8 + r, *value), "B[{n}, {r}]");
            }
        }
        for token in 0..5 {
            for r in 0..8 {
                let value = if r < rank { of_embedding[r * 5 + token] } else { 0.0 };
                assert!(is_at(&form, embedding.a, token * 8 + r, value), "A[{r}, {token}]");
            }
        }
        let bias = form.bytes[shift..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let scaled: Vec<f32> = counting(n_out, 9).iter().map(|value| 0.5 * value).collect();
        assert_eq!(bias.take(n_out).collect::<Vec<_>>(), scaled);
    }
}
