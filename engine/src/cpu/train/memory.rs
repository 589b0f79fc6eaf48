//! The memory of a pass, taken once: activations by buffer, and what it comes to.
//!
//! ```text
//! residual[0..=L]   [T, hidden]     entry of every layer, and exit of the last
//! record            per kept layer, and one that the others share:
//!   middle          [T, hidden]     residual before the feed-forward part
//!   qkv             [T, q + k + v]  as projected: before head norms and rotation
//!   attended        [T, q]          output of attention
//!   lse             [heads, T]      logarithms of its sums
//!   gate_up         [T, 2 ffn]      backward: their gradients
//!   v               [T, Σ ranks]    s A x of every site, ranks padded to 16
//! ```
//! Rows are padded to 32 columns; padding is zero and stays so.

use std::ops::{Index, IndexMut};

use crate::{
    backend::OUTPUT_ALIGN,
    cpu::{memory::Lines, packed::BLOCK, simd::LANES},
    site::TargetModule,
    spec::ModelSpec,
    train::{AdapterShape, MemoryNeed, ProductPrecision, TrainOptions},
};

use super::{
    attention::QUERY_ROWS, lora::gradient_values, memory_pairs::PairMemory, ops::Columns,
    panel::panel_values, product::Rows,
};

/// Columns of logits that are in memory at a time.
pub(crate) const VOCAB_CHUNK: usize = 512;
/// Most linears that share an input.
pub(crate) const PARTS: usize = 3;
/// Bytes of attention weights that a backward group of query tiles may have, if it is more than one tile.
const GROUP_BYTES: usize = 4 << 20;

/// A buffer `[rows_max, stride]`.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    pub(crate) values: Lines<f32>,
    pub(crate) stride: usize,
}

impl Buffer {
    fn new(n_rows: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(BLOCK);
        // Zeroed pages come from the system: what is never written takes no memory.
        Self { values: Lines::zeroed(n_rows * stride), stride }
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.stride]
    }
}

/// Which buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BufferId(usize);

/// Activations of one layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) middle: BufferId,
    pub(crate) qkv: BufferId,
    pub(crate) attended: BufferId,
    pub(crate) lse: BufferId,
    pub(crate) gate_up: BufferId,
    pub(crate) v: BufferId,
}

/// Widths of a model's activations, and where parts begin.
#[derive(Clone, Debug)]
pub(crate) struct Widths {
    pub(crate) q: usize,
    pub(crate) kv: usize,
    /// Of gate, and of up.
    pub(crate) ffn: usize,
    /// Columns of `v` in every layer: the widest.
    v: usize,
    /// Largest padded rank.
    pub(crate) rank: usize,
    /// Largest input or output of a linear, padded.
    pub(crate) widest: usize,
}

impl Widths {
    pub(crate) fn new(spec: &ModelSpec, shape: &AdapterShape) -> Self {
        let padded = |&(_, rank): &(_, usize)| rank.next_multiple_of(LANES);
        let of_layer = |layer| {
            let sites = shape.sites.iter().filter(move |(site, _)| site.layer == layer);
            sites.map(padded).sum::<usize>()
        };
        let q = spec.n_heads * spec.head_dim;
        let ffn = spec.ffn.next_multiple_of(OUTPUT_ALIGN);
        Self {
            q,
            kv: spec.n_kv_heads * spec.head_dim,
            ffn,
            v: (0..spec.n_layers).map(of_layer).max().unwrap_or(0),
            rank: shape.sites.iter().map(padded).max().unwrap_or(0),
            widest: spec.hidden.max(ffn).max(q).next_multiple_of(BLOCK),
        }
    }

    /// First column of a linear's output in the buffer that its projection writes.
    pub(crate) fn column(&self, module: TargetModule) -> usize {
        match module {
            TargetModule::KProj => self.q,
            TargetModule::VProj => self.q + self.kv,
            TargetModule::UpProj => self.ffn,
            TargetModule::QProj
            | TargetModule::OProj
            | TargetModule::GateProj
            | TargetModule::DownProj
            | TargetModule::EmbedTokens
            | TargetModule::LmHead => 0,
        }
    }

    pub(super) fn qkv(&self) -> usize {
        self.q + 2 * self.kv
    }
}

/// All buffers.
#[derive(Debug)]
pub(crate) struct Memory {
    buffers: Vec<Buffer>,
    pub(crate) residual: Vec<BufferId>,
    /// Of the last layers, the topmost last.
    kept: Vec<Record>,
    shared: Record,
    n_layers: usize,
    /// Output of a norm; backward: its gradient.
    pub(crate) normed: BufferId,
    /// Queries (scaled) and keys, normed and rotated.
    pub(crate) rotated: BufferId,
    /// Keys and values turned round, `[kv, T]`.
    pub(crate) k_turned: BufferId,
    pub(crate) v_turned: BufferId,
    /// Input of the down projection; backward: its gradient.
    pub(crate) product: BufferId,
    pub(crate) d_residual: BufferId,
    pub(crate) d_attended: BufferId,
    pub(crate) d_qkv: BufferId,
    /// `s dy B` of each part.
    pub(crate) dv: [BufferId; PARTS],
    /// An input with dropout.
    pub(crate) dropped: BufferId,
    /// Head rows after the final norm, and the gradient there.
    pub(crate) head_input: BufferId,
    pub(crate) d_head_input: BufferId,
    /// One chunk of the vocabulary, or all of them if they are kept for the backward half.
    logits: Vec<BufferId>,
    pub(crate) keeps_logits: bool,
    /// Largest logit and sum of exponentials so far, of each head row.
    pub(crate) head_sums: BufferId,
    /// Copies of each part's factors in the order that products read; empty with bf16.
    pub(crate) packed: [[BufferId; 2]; PARTS],
    /// Weights of a group of query tiles.
    pub(crate) group: BufferId,
    pub(crate) pairs: PairMemory,
    /// Per thread: a panel, or scores of a tile.
    pub(crate) scratch: Vec<Lines<f32>>,
    pub(crate) widths: Widths,
    need: MemoryNeed,
}

/// Hands out buffers and counts their bytes. Without `allocate` it only counts.
struct Taker {
    buffers: Vec<Buffer>,
    bytes: usize,
    allocate: bool,
}

impl Taker {
    fn take(&mut self, n_rows: usize, width: usize) -> BufferId {
        self.bytes += n_rows * width.next_multiple_of(BLOCK) * size_of::<f32>();
        self.buffers.push(if self.allocate {
            Buffer::new(n_rows, width)
        } else {
            Buffer::default()
        });
        BufferId(self.buffers.len() - 1)
    }

    fn record(&mut self, n_rows: usize, spec: &ModelSpec, widths: &Widths) -> Record {
        Record {
            middle: self.take(n_rows, spec.hidden),
            qkv: self.take(n_rows, widths.qkv()),
            attended: self.take(n_rows, widths.q),
            lse: self.take(spec.n_heads, n_rows),
            gate_up: self.take(n_rows, 2 * widths.ffn),
            v: self.take(n_rows, widths.v),
        }
    }
}

impl Memory {
    /// What [`Self::new`] would take.
    pub(crate) fn need(
        spec: &ModelSpec,
        shape: &AdapterShape,
        options: &TrainOptions,
    ) -> MemoryNeed {
        Self::build(spec, shape, options, false).need
    }

    /// Takes it.
    pub(crate) fn new(spec: &ModelSpec, shape: &AdapterShape, options: &TrainOptions) -> Self {
        Self::build(spec, shape, options, true)
    }

    fn build(
        spec: &ModelSpec,
        shape: &AdapterShape,
        options: &TrainOptions,
        allocate: bool,
    ) -> Self {
        let widths = Widths::new(spec, shape);
        let (rows, n_layers) = (options.rows_max, spec.n_layers);
        let mut taker = Taker { buffers: Vec::new(), bytes: 0, allocate };
        let residual: Vec<_> = (0..=n_layers).map(|_| taker.take(rows, spec.hidden)).collect();
        let residual_bytes = taker.bytes;
        let shared = taker.record(rows, spec, &widths);
        let record_bytes = taker.bytes - residual_bytes;
        // The shared record is one of the kept ones if all are kept.
        let kept_layers = (options.activation_bytes / record_bytes.max(1)).min(n_layers);
        let mut kept: Vec<_> = (0..kept_layers.min(n_layers.saturating_sub(1)))
            .map(|_| taker.record(rows, spec, &widths))
            .collect();
        if kept_layers == n_layers {
            kept.insert(0, shared);
        }
        // Logits of all chunks save less work for their bytes than layers do, so they come after them.
        let n_chunks = spec.vocab.div_ceil(VOCAB_CHUNK);
        let logits_bytes = n_chunks * rows * VOCAB_CHUNK * size_of::<f32>();
        let left = options.activation_bytes.saturating_sub(kept_layers * record_bytes);
        let keeps_logits = kept_layers == n_layers && left >= logits_bytes;
        let n_logits = if keeps_logits { n_chunks } else { 1 };
        let turned = rows.next_multiple_of(LANES) + LANES;
        let group_floats = (GROUP_BYTES / size_of::<f32>()).max(tile_values(spec, rows));
        let is_bf16 = options.precision == ProductPrecision::Bf16;
        let n_packed = if is_bf16 { 0 } else { widths.widest };
        let mut take = |n_rows, width| taker.take(n_rows, width);
        let mut memory = Self {
            residual,
            kept,
            shared,
            n_layers,
            normed: take(rows, spec.hidden),
            rotated: take(rows, widths.q + widths.kv),
            k_turned: take(widths.kv, turned),
            v_turned: take(widths.kv, turned),
            product: take(rows, widths.ffn),
            d_residual: take(rows, spec.hidden),
            d_attended: take(rows, widths.q),
            d_qkv: take(rows, widths.qkv()),
            dv: std::array::from_fn(|_| take(rows, widths.rank)),
            dropped: take(rows, widths.widest),
            head_input: take(rows, spec.hidden),
            d_head_input: take(rows, spec.hidden),
            logits: (0..n_logits).map(|_| take(rows, VOCAB_CHUNK)).collect(),
            keeps_logits,
            head_sums: take(rows, 2),
            packed: std::array::from_fn(|_| {
                [take(n_packed, widths.rank), take(n_packed, widths.rank)]
            }),
            group: take(1, group_floats),
            pairs: PairMemory::default(),
            scratch: Vec::new(),
            buffers: Vec::new(),
            widths,
            need: MemoryNeed::default(),
        };
        let panel = panel_values(memory.widths.widest.max(VOCAB_CHUNK));
        let scratch = panel.max(QUERY_ROWS * turned).max(gradient_values(memory.widths.rank));
        let scratch_bytes = options.threads.max(1) * scratch * size_of::<f32>();
        let kept_bytes = kept_layers * record_bytes;
        let pairs_bytes =
            if is_bf16 { PairMemory::bytes(rows, &memory.widths, VOCAB_CHUNK) } else { 0 };
        memory.need = MemoryNeed {
            residual_bytes,
            kept_bytes,
            kept_layers,
            working_bytes: taker.bytes - residual_bytes - kept_bytes + scratch_bytes + pairs_bytes,
        };
        if allocate {
            if is_bf16 {
                memory.pairs = PairMemory::new(rows, &memory.widths, VOCAB_CHUNK);
            }
            memory.scratch = (0..options.threads.max(1)).map(|_| Lines::zeroed(scratch)).collect();
        }
        memory.buffers = taker.buffers;
        memory
    }

    /// Where logits of a chunk of the vocabulary are, by its first tile.
    pub(crate) fn logits(&self, first_tile: usize) -> BufferId {
        if self.keeps_logits {
            self.logits[first_tile / (VOCAB_CHUNK / LANES)]
        } else {
            self.logits[0]
        }
    }

    /// Whether the layer's activations stay until its backward half.
    pub(crate) fn keeps(&self, layer: usize) -> bool {
        layer + self.kept.len() >= self.n_layers
    }

    /// Where a layer's activations are.
    pub(crate) fn record(&self, layer: usize) -> Record {
        let first_kept = self.n_layers - self.kept.len();
        if layer >= first_kept { self.kept[layer - first_kept] } else { self.shared }
    }

    /// Some columns of every row.
    pub(crate) fn rows(&self, from: Columns) -> Rows<'_> {
        let buffer = &self[from.buffer];
        Rows::new(&buffer.values[from.column..], buffer.stride)
    }

    /// Takes a buffer out, to write to it beside others; [`Self::put`] it back.
    pub(crate) fn take(&mut self, id: BufferId) -> Buffer {
        std::mem::take(&mut self.buffers[id.0])
    }

    pub(crate) fn put(&mut self, id: BufferId, buffer: Buffer) {
        self.buffers[id.0] = buffer;
    }
}

impl Index<BufferId> for Memory {
    type Output = Buffer;

    fn index(&self, id: BufferId) -> &Buffer {
        &self.buffers[id.0]
    }
}

impl IndexMut<BufferId> for Memory {
    fn index_mut(&mut self, id: BufferId) -> &mut Buffer {
        &mut self.buffers[id.0]
    }
}

/// Values of `p` and `ds` of all heads of a query tile that sees so many tokens.
pub(crate) fn tile_values(spec: &ModelSpec, n_keys: usize) -> usize {
    2 * spec.n_heads * QUERY_ROWS * n_keys.next_multiple_of(LANES)
}

/// Floats that the tiles of one backward group may take together.
pub(crate) fn group_values(memory: &Memory) -> usize {
    memory[memory.group].values.len()
}
