//! Activations quantized to int8, for products with integer weight codes.

use super::{
    packed::BLOCK,
    simd::{Kernel, LANES, Simd},
    threads::Parts,
};

/// Rows of a panel: rows that a kernel keeps in registers together lie side by side, block by block.
pub(crate) const PANEL: usize = 8;

/// Rows of activations in blocks of 32: `x[k] ≈ d * q[k]`, `q` in −127..=127, with the sums that offsets and minima of
/// weight formats need. A row's values depend on that row only; rows lie in panels of eight, so that a kernel reaches
/// all of them from one address.
#[derive(Debug, Default)]
pub(crate) struct Int8Rows {
    /// Values of a row, a multiple of 32.
    pub(crate) n_in: usize,
    /// `[panels, n_in / 32, 8 rows, 32]`.
    pub(crate) q: Vec<i8>,
    /// `[panels, n_in / 32, 8 rows]`.
    pub(crate) d: Vec<f32>,
    /// Sum of `q` over 32 values, `[panels, n_in / 32, 8 rows]`; exact.
    pub(crate) sum32: Vec<f32>,
    /// `d * sum32`.
    pub(crate) sum32_d: Vec<f32>,
    /// Sum of `q` over 16 values, `[panels, n_in / 32, 2 halves, 8 rows]`; exact.
    pub(crate) sum16: Vec<f32>,
    /// `d * sum16`.
    pub(crate) sum16_d: Vec<f32>,
}

impl Int8Rows {
    /// Room for `n_rows` rows of any width up to `n_in`.
    pub(crate) fn new(n_rows: usize, n_in: usize) -> Self {
        let n_rows = n_rows.next_multiple_of(PANEL);
        let blocks = n_rows * n_in / BLOCK;
        Self {
            n_in,
            q: vec![0; n_rows * n_in],
            d: vec![0.0; blocks],
            sum32: vec![0.0; blocks],
            sum32_d: vec![0.0; blocks],
            sum16: vec![0.0; 2 * blocks],
            sum16_d: vec![0.0; 2 * blocks],
        }
    }

    /// Parts that hand rows to the chunks of parallel work, for rows of width `n_in`.
    pub(crate) fn writer(&mut self, n_in: usize) -> Int8Writer<'_> {
        self.n_in = n_in;
        Int8Writer {
            n_in,
            q: Parts::new(&mut self.q),
            d: Parts::new(&mut self.d),
            sum32: Parts::new(&mut self.sum32),
            sum32_d: Parts::new(&mut self.sum32_d),
            sum16: Parts::new(&mut self.sum16),
            sum16_d: Parts::new(&mut self.sum16_d),
        }
    }
}

/// Writes rows of an [`Int8Rows`] from several threads.
pub(crate) struct Int8Writer<'a> {
    n_in: usize,
    q: Parts<'a, i8>,
    d: Parts<'a, f32>,
    sum32: Parts<'a, f32>,
    sum32_d: Parts<'a, f32>,
    sum16: Parts<'a, f32>,
    sum16_d: Parts<'a, f32>,
}

/// Quantizes one row.
pub(crate) struct QuantizeRow<'a, 'b> {
    pub(crate) writer: &'a Int8Writer<'b>,
    pub(crate) row: usize,
    /// `[n_in]`.
    pub(crate) x: &'a [f32],
}

impl Kernel for QuantizeRow<'_, '_> {
    type Out = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "vector kernel over rows")]
    unsafe fn run<S: Simd>(self) {
        let n_in = self.writer.n_in;
        assert_eq!(self.x.len(), n_in);
        let blocks = n_in / BLOCK;
        for block in 0..blocks {
            let x = self.x[block * BLOCK..][..BLOCK].as_ptr();
            let lane = self.row % PANEL;
            let panel = (self.row / PANEL * blocks + block) * PANEL;
            let (at, at16) = (panel + lane, 2 * panel + lane);
            let q = self.writer.q.at(at * BLOCK, BLOCK);
            let (sum32, sum16) =
                (self.writer.sum32.at(at, 1), self.writer.sum16.at(at16, PANEL + 1));
            let (sum32_d, sum16_d) =
                (self.writer.sum32_d.at(at, 1), self.writer.sum16_d.at(at16, PANEL + 1));
            let d = self.writer.d.at(at, 1);
            // SAFETY: 32 values of `x`; the addresses were checked by `at`; no other thread has this row.
            unsafe {
                let (a, b) = (S::load(x), S::load(x.add(LANES)));
                let largest = S::largest(S::max(S::abs(a), S::abs(b)));
                let scale = largest / 127.0;
                // Below about 4e-37 the quotient is infinite: such values are zeros.
                let inverse = 127.0 / largest;
                let inverse = S::splat(if inverse.is_finite() { inverse } else { 0.0 });
                let (a, b) = (S::round(S::mul(a, inverse)), S::round(S::mul(b, inverse)));
                S::store_i8(q, a);
                S::store_i8(q.add(LANES), b);
                let (sum_a, sum_b) = (S::sum(a), S::sum(b));
                *d = scale;
                *sum16 = sum_a;
                *sum16.add(PANEL) = sum_b;
                *sum32 = sum_a + sum_b;
                *sum16_d = scale * sum_a;
                *sum16_d.add(PANEL) = scale * sum_b;
                *sum32_d = scale * (sum_a + sum_b);
            }
        }
    }
}
