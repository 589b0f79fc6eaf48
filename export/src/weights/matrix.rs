//! The rows of one matrix as they are exported: the file's or an adapter's own, with what a merged adapter adds.

use std::ops::Range;

use pleach_engine::{
    adapter_weights::SiteWeights,
    backend::MatrixSource,
    quant::{BlockFormat, CodeLayout, CodeRow, dequantize_row, unpack_row},
    site::Site,
};

/// Where rows come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MatrixRows<'a, 's> {
    File(&'a MatrixSource<'s>),
    /// `[n_out, n_in]`, row-major.
    Own(&'a [f32]),
}

/// A matrix `[n_out, n_in]`.
#[derive(Debug)]
pub(crate) struct Matrix<'a, 's> {
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
    rows: MatrixRows<'a, 's>,
    merged: Option<Merged<'a>>,
}

/// `gain[n] (W[n] + lora_scale * (B A)[n])`.
#[derive(Debug)]
struct Merged<'a> {
    weights: &'a SiteWeights,
    /// Of `DoRA`: what brings a row to its magnitude, `[n_out]`.
    gain: Option<Vec<f32>>,
}

impl<'a, 's> Matrix<'a, 's> {
    /// With the plain weights of a site's adapter added, and its `DoRA` applied.
    pub(crate) fn new(
        (n_out, n_in): (usize, usize),
        rows: MatrixRows<'a, 's>,
        merged: Option<&'a SiteWeights>,
    ) -> Self {
        let merged = merged.map(|weights| Merged { weights, gain: None });
        let mut matrix = Self { n_out, n_in, rows, merged };
        let gain = matrix.dora_gain();
        if let Some(merged) = &mut matrix.merged {
            merged.gain = gain;
        }
        matrix
    }

    /// Norms are summed in f64, so that the order of a row does not matter to an f32.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    fn dora_gain(&self) -> Option<Vec<f32>> {
        let magnitude = self.merged.as_ref()?.weights.magnitude.as_deref()?;
        let mut row = vec![0.0; self.n_in];
        let gain = magnitude.iter().enumerate().map(|(n, &magnitude)| {
            self.read(n, 0..self.n_in, &mut row);
            let squares: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
            (f64::from(magnitude) / squares.sqrt()) as f32
        });
        Some(gain.collect())
    }

    /// The block format of the file; of one's own matrices, floats.
    pub(crate) fn format(&self) -> BlockFormat {
        match self.rows {
            MatrixRows::File(source) => source.format,
            MatrixRows::Own(_) => BlockFormat::F32,
        }
    }

    /// Whether values are others than the file's.
    pub(crate) fn is_changed(&self) -> bool {
        self.merged.is_some()
    }

    /// What the codes of the file mean, where rows are as it has them.
    pub(crate) fn unchanged_codes(&self) -> Option<CodeLayout> {
        if self.is_changed() { None } else { self.format().code_layout() }
    }

    /// The bytes of whole blocks of a row.
    fn bytes(source: &MatrixSource<'s>, n: usize, columns: &Range<usize>) -> &'s [u8] {
        let (values, bytes) = (source.format.block_values(), source.format.block_bytes());
        &(source.row)(n)[columns.start / values * bytes..columns.end / values * bytes]
    }

    /// Values of a row; `columns` are whole blocks of the format.
    pub(crate) fn read(&self, n: usize, columns: Range<usize>, out: &mut [f32]) {
        match self.rows {
            MatrixRows::File(source) => {
                dequantize_row(source.format, Self::bytes(source, n, &columns), out);
            }
            MatrixRows::Own(values) => {
                out.copy_from_slice(&values[n * self.n_in..][columns.clone()]);
            }
        }
        if let Some(merged) = &self.merged {
            merged.add(n, columns, self.n_out, self.n_in, out);
        }
    }

    /// Codes of a row that is as the file has it; `columns` are whole blocks of the format.
    pub(crate) fn unpack(&self, n: usize, columns: &Range<usize>, out: &mut CodeRow) {
        if let MatrixRows::File(source) = self.rows {
            unpack_row(source.format, Self::bytes(source, n, columns), columns.len(), out);
        }
    }
}

impl Merged<'_> {
    fn add(&self, n: usize, columns: Range<usize>, n_out: usize, n_in: usize, out: &mut [f32]) {
        let SiteWeights { site, rank, lora_scale, a, b, .. } = self.weights;
        if *site == Site::EMBEDDING {
            // As a linear the embedding maps a token to its row: `a` is `[R, vocab]`, `b` is `[hidden, R]`.
            let of_token: Vec<f32> = (0..*rank).map(|r| lora_scale * a[r * n_out + n]).collect();
            for (value, h) in out.iter_mut().zip(columns) {
                *value += dot(&b[h * rank..][..*rank], &of_token);
            }
        } else {
            for (r, b) in b[n * rank..][..*rank].iter().enumerate() {
                let factor = lora_scale * b;
                for (value, a) in out.iter_mut().zip(&a[r * n_in..][columns.clone()]) {
                    *value += factor * a;
                }
            }
        }
        if let Some(gain) = &self.gain {
            for value in out {
                *value *= gain[n];
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
