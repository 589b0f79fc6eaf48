//! Tiles in plain Rust: the same instructions in the same order as the processor's, each as the manual defines it.
#![expect(unsafe_code, reason = "tiles are loaded and stored by address")]

use std::array::from_fn;

use crate::{
    cpu::simd::{A_STEP, Strip, TileConfig, Tiles},
    reference::matmul::tile_sum,
};

pub(super) struct EmulatedTiles;

/// Words of sixteen rows of 64 bytes.
type Tile = [[u32; 16]; 16];

struct Unit {
    config: TileConfig,
    tiles: [Tile; 8],
}

impl Unit {
    /// Refuses what `ldtilecfg` refuses, and tiles that nobody could use.
    fn new(config: TileConfig) -> Self {
        for (rows, row_bytes) in config.rows.into_iter().zip(config.row_bytes).take(8) {
            assert!((1..=16).contains(&rows) && (4..=64).contains(&row_bytes), "{config:?}");
            assert!(row_bytes.is_multiple_of(4), "{config:?}");
        }
        assert_eq!(config.rows[8..], [0; 8]);
        assert_eq!(config.row_bytes[8..], [0; 8]);
        Self { config, tiles: [[[0; 16]; 16]; 8] }
    }

    /// Rows and words of a row.
    fn shape(&self, tile: usize) -> (usize, usize) {
        (self.config.rows[tile].into(), usize::from(self.config.row_bytes[tile]) / 4)
    }

    fn zero(&mut self, tile: usize) {
        self.tiles[tile] = [[0; 16]; 16];
    }

    unsafe fn load(&mut self, tile: usize, from: *const u32, stride: usize) {
        let (rows, words) = self.shape(tile);
        self.zero(tile);
        for row in 0..rows {
            for word in 0..words {
                // SAFETY: the strip's pointers are valid for its tiles.
                let value = unsafe { from.byte_add(row * stride).add(word).read() };
                self.tiles[tile][row][word] = value;
            }
        }
    }

    unsafe fn store(&self, tile: usize, to: *mut u32, stride: usize) {
        let (rows, words) = self.shape(tile);
        for (row, values) in self.tiles[tile].iter().enumerate().take(rows) {
            for (word, value) in values.iter().enumerate().take(words) {
                // SAFETY: as above.
                unsafe { to.byte_add(row * stride).add(word).write(*value) };
            }
        }
    }

    /// `tdpbf16ps`.
    fn multiply(&mut self, result: usize, left: usize, right: usize) {
        let ((rows, columns), (_, pairs)) = (self.shape(result), self.shape(left));
        assert_eq!((self.shape(left), self.shape(right)), ((rows, pairs), (pairs, columns)));
        let two = |pair: u32| [pair << 16, pair & 0xffff_0000].map(f32::from_bits);
        for row in 0..rows {
            let a: Vec<f32> =
                self.tiles[left][row][..pairs].iter().copied().flat_map(two).collect();
            for column in 0..columns {
                let b = self.tiles[right].iter().take(pairs).map(|row| row[column]);
                let b: Vec<f32> = b.flat_map(two).collect();
                let sum = &mut self.tiles[result][row][column];
                *sum = tile_sum(f32::from_bits(*sum), &a, &b).to_bits();
            }
        }
    }
}

// SAFETY: it loads and stores the strip's tiles alone.
unsafe impl Tiles for EmulatedTiles {
    const ARE_HERE: bool = true;

    unsafe fn multiply(strip: &mut Strip) {
        let mut unit = Unit::new(strip.config);
        for block in 0..strip.n_blocks {
            let c: [*mut u32; 4] = from_fn(|tile| {
                let left = strip.c[tile / 2].wrapping_byte_add(block * strip.c_block);
                left.wrapping_byte_add(tile % 2 * strip.c_right).cast()
            });
            for (tile, &from) in c.iter().enumerate() {
                if strip.goes_on == 0 {
                    unit.zero(tile);
                } else {
                    // SAFETY: the caller's.
                    unsafe { unit.load(tile, from, strip.c_stride) };
                }
            }
            for step in 0..strip.n_steps {
                for half in 0..2 {
                    let a = strip.a[half].wrapping_byte_add(block * strip.a_block + step * A_STEP);
                    let b = strip.b[half].wrapping_byte_add(step * strip.b_step);
                    // SAFETY: the caller's.
                    unsafe {
                        unit.load(4 + half, a, strip.a_stride);
                        unit.load(6 + half, b, strip.b_stride);
                    }
                }
                for tile in 0..4 {
                    unit.multiply(tile, 4 + tile / 2, 6 + tile % 2);
                }
            }
            for (tile, &to) in c.iter().enumerate() {
                // SAFETY: the caller's.
                unsafe { unit.store(tile, to, strip.c_stride) };
            }
        }
    }
}
