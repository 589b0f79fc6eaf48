//! Products of two by two tiles: what a unit for tiles is told, whoever multiplies.
//!
//! A tile is at most sixteen rows of 64 bytes. A block of a result is always four tiles: where it has fewer than 32 rows
//! or columns, its tiles are smaller. So there is one sequence of instructions for every size.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only a processor with tiles reads a strip")
)]

use super::LANES;

/// Most rows of a block.
pub(crate) const BLOCK_ROWS: usize = 2 * TILE_ROWS;
/// Most pairs of terms that a step takes.
pub(crate) const STEP_PAIRS: usize = 16;
const TILE_ROWS: usize = 16;

/// Who multiplies tiles.
///
/// # Safety
/// [`Self::multiply`] must touch nothing but what the strip names.
pub(crate) unsafe trait Tiles {
    /// Whether there are any.
    const ARE_HERE: bool;

    /// Computes a strip, and leaves no tile behind.
    ///
    /// # Safety
    /// The processor must have the tiles, and the system must have granted them; the pointers of the strip must be
    /// valid for all that its shape says, those of the result for nobody else meanwhile.
    unsafe fn multiply(strip: &mut Strip);
}

/// For instruction sets without tiles.
pub(crate) struct NoTiles;

// SAFETY: it touches nothing.
unsafe impl Tiles for NoTiles {
    const ARE_HERE: bool = false;

    unsafe fn multiply(_strip: &mut Strip) {
        unreachable!("asked for where there are no tiles")
    }
}

/// Blocks of a result, one below the other: `c[i, n] (+)= Σ a(i, j) b[j, n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StripShape {
    /// Of each block, at most [`BLOCK_ROWS`]; all of them where there are several blocks.
    pub(crate) rows: usize,
    pub(crate) n_blocks: usize,
    /// 16 or 32.
    pub(crate) columns: usize,
    /// Pairs of terms of each step, at most [`STEP_PAIRS`]; all of them where there are several steps.
    pub(crate) pairs: usize,
    /// At least one.
    pub(crate) n_steps: usize,
    /// Whether sums go on from what the result holds; else from zero.
    pub(crate) goes_on: bool,
}

/// How the eight tiles are cut, as `ldtilecfg` reads it: palette 1.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    pub(crate) row_bytes: [u16; 16],
    pub(crate) rows: [u8; 16],
}

/// What [`Tiles::multiply`] does. Tiles 0 to 3 are the result (upper left and right, lower left and right), 4 and 5 the
/// left factor (upper, lower), 6 and 7 the right one (left, right).
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Strip {
    pub(crate) config: TileConfig,
    /// Upper and lower rows of the first block; [`Tiles::multiply`] may move them on.
    pub(crate) a: [*const u32; 2],
    /// Left and right columns.
    pub(crate) b: [*const u32; 2],
    /// Left columns of the upper and the lower rows; as `a`.
    pub(crate) c: [*mut f32; 2],
    pub(crate) n_blocks: usize,
    pub(crate) n_steps: usize,
    pub(crate) goes_on: usize,
    /// Bytes from a row to the next.
    pub(crate) a_stride: usize,
    pub(crate) b_stride: usize,
    pub(crate) c_stride: usize,
    /// Bytes from a step's rows of `b` to the next step's.
    pub(crate) b_step: usize,
    /// Bytes from left to right columns of `c`.
    pub(crate) c_right: usize,
    /// Bytes from a block to the next.
    pub(crate) a_block: usize,
    pub(crate) c_block: usize,
}

/// Bytes of a step's terms in a row of `a`.
pub(crate) const A_STEP: usize = STEP_PAIRS * WORD;
/// Bytes of a pair, and of an element of a result.
const WORD: usize = size_of::<u32>();

impl Strip {
    /// For factors and a result at these places, with strides in elements; `b`'s second stride leads to its second
    /// sixteen columns. `spare` takes the second row of a block of one row.
    ///
    /// # Panics
    /// When the shape is none.
    pub(crate) fn new(
        shape: StripShape,
        (a, a_stride): (*const u32, usize),
        (b, b_stride, b_vector_stride): (*const u32, usize, usize),
        (c, c_stride): (*mut f32, usize),
        spare: &mut [f32; BLOCK_ROWS],
    ) -> Self {
        let StripShape { rows, n_blocks, columns, pairs, n_steps, goes_on } = shape;
        assert!((1..=BLOCK_ROWS).contains(&rows) && (n_blocks == 1 || rows == BLOCK_ROWS));
        assert!((1..=STEP_PAIRS).contains(&pairs) && (n_steps == 1 || pairs == STEP_PAIRS));
        assert!((columns == LANES || columns == 2 * LANES) && n_blocks > 0 && n_steps > 0);
        let (upper, width) = (rows.div_ceil(2), columns / 2);
        // A tile has at least one row: the only one is computed twice.
        let (lower, c_lower) = if rows == 1 {
            (a, spare.as_mut_ptr())
        } else {
            (a.wrapping_add(upper * a_stride), c.wrapping_add(upper * c_stride))
        };
        let right = if columns == LANES { width } else { b_vector_stride };
        Self {
            config: TileConfig::new(upper, (rows - upper).max(1), width, pairs),
            a: [a, lower],
            b: [b, b.wrapping_add(right)],
            c: [c, c_lower],
            n_blocks,
            n_steps,
            goes_on: usize::from(goes_on),
            a_stride: a_stride * WORD,
            b_stride: b_stride * WORD,
            c_stride: c_stride * WORD,
            b_step: STEP_PAIRS * b_stride * WORD,
            c_right: width * WORD,
            a_block: BLOCK_ROWS * a_stride * WORD,
            c_block: BLOCK_ROWS * c_stride * WORD,
        }
    }
}

impl TileConfig {
    /// For so many upper and lower rows, and columns on each side.
    fn new(upper: usize, lower: usize, width: usize, pairs: usize) -> Self {
        let tile = |tile: usize| match tile {
            0 | 1 => (upper, width),
            2 | 3 => (lower, width),
            4 => (upper, pairs),
            5 => (lower, pairs),
            6 | 7 => (pairs, width),
            _ => (0, 0),
        };
        // At most 16 rows and 64 bytes.
        #[expect(clippy::cast_possible_truncation, reason = "see above")]
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: std::array::from_fn(|i| (tile(i).1 * WORD) as u16),
            rows: std::array::from_fn(|i| tile(i).0 as u8),
        }
    }
}
