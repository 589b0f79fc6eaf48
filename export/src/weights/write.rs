//! Matrices into the data file, in the order that each operator wants.

use std::ops::Range;

use crate::{
    error::ExportError,
    onnx::{Graph, Tensor, proto::DataType},
};

use super::{
    Matrix,
    blocks::{BlockRow, Blocks},
    tally::Loss,
};

/// Values of a part of a matrix that is turned around in memory (64 MB of f32).
const STRIPE_VALUES_MAX: usize = 1 << 24;
/// Columns that are turned around at a time: a cache line of f32.
const TURN: usize = 16;

/// `[n_out, n_in]` as floats.
pub(crate) fn write_floats(
    graph: &mut Graph<'_>,
    name: &str,
    matrix: &Matrix<'_, '_>,
) -> Result<(), ExportError> {
    graph.data.begin()?;
    let mut row = vec![0.0; matrix.n_in];
    for n in 0..matrix.n_out {
        matrix.read(n, 0..matrix.n_in, &mut row);
        graph.data.floats(&row)?;
    }
    let slice = graph.data.end();
    let dims = &[matrix.n_out, matrix.n_in];
    graph.external(Tensor { name, data_type: DataType::Float, dims }, slice);
    Ok(())
}

/// `[n_in, n_out]` as floats: what `MatMul` takes.
pub(crate) fn write_floats_transposed(
    graph: &mut Graph<'_>,
    name: &str,
    matrix: &Matrix<'_, '_>,
) -> Result<(), ExportError> {
    graph.data.begin()?;
    let n_out = matrix.n_out;
    let (mut stripe, mut turned) = (Vec::new(), vec![0.0; TURN * n_out]);
    for columns in stripes(matrix, 1) {
        let width = columns.len();
        stripe.resize(n_out * width, 0.0);
        for (n, row) in stripe.chunks_exact_mut(width).enumerate() {
            matrix.read(n, columns.clone(), row);
        }
        turn(&stripe, width, &mut turned, |rows| graph.data.floats(rows))?;
    }
    let slice = graph.data.end();
    let dims = &[matrix.n_in, n_out];
    graph.external(Tensor { name, data_type: DataType::Float, dims }, slice);
    Ok(())
}

/// Blocks as `MatMulNBits` takes them: codes `[n_out, blocks, bytes]` (of 4 bits, the even value in the low half of a
/// byte), scales and minima `[n_out, blocks]`, under the name with `.codes`, `.scales` and `.minima` after it.
pub(crate) fn write_blocks(
    graph: &mut Graph<'_>,
    name: &str,
    matrix: &Matrix<'_, '_>,
    blocks: Blocks,
) -> Result<Loss, ExportError> {
    let n_blocks = matrix.n_in / blocks.size;
    let (mut row, mut loss) = (BlockRow::default(), Loss::default());
    let (mut scales, mut minima) = (Vec::new(), Vec::new());
    graph.data.begin()?;
    for n in 0..matrix.n_out {
        blocks.encode(matrix, n, 0..matrix.n_in, &mut row, &mut loss);
        pack(blocks.bits, &mut row.codes);
        graph.data.bytes(&row.codes)?;
        scales.extend_from_slice(&row.scales);
        minima.extend_from_slice(&row.minima);
    }
    let slice = graph.data.end();
    let dims = &[matrix.n_out, n_blocks, blocks.code_bytes()];
    let codes = format!("{name}.codes");
    graph.external(Tensor { name: &codes, data_type: DataType::Uint8, dims }, slice);
    let dims = &[matrix.n_out, n_blocks];
    graph.floats(&format!("{name}.scales"), dims, &scales)?;
    if blocks.has_min {
        graph.floats(&format!("{name}.minima"), dims, &minima)?;
    }
    Ok(loss)
}

/// Blocks as `DequantizeLinear` before `MatMul` takes them: signed codes `[n_in, n_out]`, scales and minima
/// `[blocks, n_out]`.
pub(crate) fn write_blocks_transposed(
    graph: &mut Graph<'_>,
    name: &str,
    matrix: &Matrix<'_, '_>,
    blocks: Blocks,
) -> Result<Loss, ExportError> {
    let (n_out, n_blocks) = (matrix.n_out, matrix.n_in / blocks.size);
    let (mut row, mut loss) = (BlockRow::default(), Loss::default());
    let (mut scales, mut minima) = (vec![0.0; n_blocks * n_out], Vec::new());
    if blocks.has_min {
        minima.resize(n_blocks * n_out, 0.0);
    }
    let (mut stripe, mut turned, mut packed) = (Vec::new(), vec![0; TURN * n_out], Vec::new());
    graph.data.begin()?;
    for columns in stripes(matrix, blocks.size) {
        let (width, first_block) = (columns.len(), columns.start / blocks.size);
        stripe.clear();
        for n in 0..n_out {
            blocks.encode(matrix, n, columns.clone(), &mut row, &mut loss);
            // The sign: the codes without their zero point, in two's complement.
            stripe.extend(row.codes.iter().map(|code| code.wrapping_sub(blocks.zero_point())));
            for (block, scale) in row.scales.iter().enumerate() {
                scales[(first_block + block) * n_out + n] = *scale;
            }
            for (block, minimum) in row.minima.iter().enumerate() {
                minima[(first_block + block) * n_out + n] = *minimum;
            }
        }
        turn(&stripe, width, &mut turned, |rows| {
            packed.clear();
            packed.extend_from_slice(rows);
            pack(blocks.bits, &mut packed);
            graph.data.bytes(&packed)
        })?;
    }
    let slice = graph.data.end();
    let data_type = if blocks.bits == 4 { DataType::Int4 } else { DataType::Int8 };
    let codes = format!("{name}.codes");
    graph.external(Tensor { name: &codes, data_type, dims: &[matrix.n_in, n_out] }, slice);
    let dims = &[n_blocks, n_out];
    graph.floats(&format!("{name}.scales"), dims, &scales)?;
    if blocks.has_min {
        graph.floats(&format!("{name}.minima"), dims, &minima)?;
    }
    Ok(loss)
}

/// Ranges of columns, whole blocks of the file's format and of `block` values, that are small enough together.
fn stripes(matrix: &Matrix<'_, '_>, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (n_in, unit) = (matrix.n_in, matrix.format().block_values().max(block));
    let width = (STRIPE_VALUES_MAX / matrix.n_out / unit).max(1) * unit;
    (0..n_in).step_by(width).map(move |start| start..n_in.min(start + width))
}

/// Gives `[width, n]` of a `[n, width]`, some rows at a time.
fn turn<T: Copy>(
    stripe: &[T],
    width: usize,
    turned: &mut [T],
    mut write: impl FnMut(&[T]) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let n = stripe.len() / width;
    for first in (0..width).step_by(TURN) {
        let columns = TURN.min(width - first);
        for (row, values) in stripe.chunks_exact(width).enumerate() {
            for (column, value) in values[first..first + columns].iter().enumerate() {
                turned[column * n + row] = *value;
            }
        }
        write(&turned[..columns * n])?;
    }
    Ok(())
}

/// Two codes of 4 bits to a byte, the first one low. Codes of 8 bits stay.
fn pack(bits: u32, codes: &mut Vec<u8>) {
    if bits == 8 {
        return;
    }
    let n = codes.len();
    for pair in 0..n.div_ceil(2) {
        let high = codes.get(2 * pair + 1).copied().unwrap_or_default();
        codes[pair] = codes[2 * pair] & 0x0f | high << 4;
    }
    codes.truncate(n.div_ceil(2));
}
