//! Where everything lies in a repacked weight: the twin of `cuda/common/tile.cuh`, which has the drawing.
//!
//! A test compiles that header with the host's C++ compiler and compares every offset and every value with these.

use crate::quant::CodeLayout;

/// Rows of a stripe and of a unit.
pub const STRIPE_ROWS: usize = 64;
/// In features of a unit.
pub const UNIT_K: usize = 64;
/// Rows of a block, the M of an MMA.
pub const BLOCK_ROWS: usize = 16;
/// Blocks of a unit.
pub const BLOCKS: usize = STRIPE_ROWS / BLOCK_ROWS;
/// Lanes of a warp.
pub const LANES: usize = 32;
/// Units under one set of super scales.
pub const SUPER_UNITS: usize = 4;
/// Bytes of the P4 plane of a unit: 16 for every lane of every block.
pub const P4_BYTES: usize = BLOCKS * LANES * 16;
/// Metadata entries of a block: each serves rows `r` and `r + 8`.
const ENTRIES: usize = 8;

/// The offsets of one code layout, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileLayout {
    codes: CodeLayout,
}

/// Where the code of one row and one k of a unit lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Block of 16 rows.
    pub block: usize,
    /// Lane that owns it.
    pub lane: usize,
    /// k16 step, which is the word of P4.
    pub step: usize,
    /// Number of the A fragment's register.
    pub reg: usize,
    /// Element of the register: 0 is the lower half.
    pub element: usize,
}

impl Place {
    /// Of a row (0..64) and a k (0..64) of a unit.
    pub const fn new(row: usize, k: usize) -> Self {
        let in_block = row % BLOCK_ROWS;
        Self {
            block: row / BLOCK_ROWS,
            lane: in_block % 8 * 4 + k / 16,
            step: k % 16 / 4,
            reg: in_block / 8 + 2 * (k % 4 / 2),
            element: k % 2,
        }
    }

    /// First of the four bits in the word of P4.
    pub const fn p4_shift(self) -> usize {
        4 * (self.reg + 4 * self.element)
    }

    /// The bit in the word of P1.
    pub const fn p1_shift(self) -> usize {
        16 * self.element + 4 * self.step + self.reg
    }

    /// The word of P2.
    pub const fn p2_word(self) -> usize {
        self.step / 2
    }

    /// First of the two bits in the word of P2.
    pub const fn p2_shift(self) -> usize {
        16 * self.element + 2 * (self.reg + 4 * (self.step % 2))
    }
}

impl TileLayout {
    /// Of codes of 4, 5, 6 or 8 bits in groups of 16 or 32.
    pub const fn new(codes: CodeLayout) -> Self {
        Self { codes }
    }

    /// What codes and scales mean.
    pub const fn codes(self) -> CodeLayout {
        self.codes
    }

    /// Bytes of the extra plane for one lane of one block: P1, P2 or a second P4.
    pub const fn extra_lane_bytes(self) -> usize {
        match self.codes.bits {
            5 => 4,
            6 => 8,
            8 => 16,
            _ => 0,
        }
    }

    /// Groups along a unit's k: 2 or 4.
    pub const fn unit_groups(self) -> usize {
        UNIT_K / self.codes.group
    }

    /// Bytes of one metadata entry: rows `r` and `r + 8` of a block.
    pub const fn meta_entry_bytes(self) -> usize {
        2 * self.unit_groups() * self.scale_bytes() * if self.codes.has_min { 2 } else { 1 }
    }

    /// Bytes of one super-scale entry: rows `r` and `r + 8` of a block.
    pub const fn super_entry_bytes(self) -> usize {
        match (self.codes.super_block, self.codes.has_min) {
            (false, _) => 0,
            (true, false) => 4,
            (true, true) => 8,
        }
    }

    /// Where the metadata of a unit begins.
    pub const fn meta_begin(self) -> usize {
        P4_BYTES + BLOCKS * LANES * self.extra_lane_bytes()
    }

    /// Bytes of a unit.
    pub const fn unit_bytes(self) -> usize {
        self.meta_begin() + BLOCKS * ENTRIES * self.meta_entry_bytes()
    }

    /// Bytes of the super scales of four units; 0 for the legacy formats.
    pub const fn super_bytes(self) -> usize {
        BLOCKS * ENTRIES * self.super_entry_bytes()
    }

    /// Bytes of a stripe of `n_units` units.
    pub const fn stripe_bytes(self, n_units: usize) -> usize {
        n_units * self.unit_bytes() + n_units / SUPER_UNITS * self.super_bytes()
    }

    /// Within a stripe: where a unit begins.
    pub const fn unit_offset(self, unit: usize) -> usize {
        unit * self.unit_bytes()
            + if self.codes.super_block { (unit / SUPER_UNITS + 1) * self.super_bytes() } else { 0 }
    }

    /// Within a stripe: where the super scales of a unit begin.
    pub const fn super_offset(self, unit: usize) -> usize {
        unit / SUPER_UNITS * (self.super_bytes() + SUPER_UNITS * self.unit_bytes())
    }

    /// Within a unit: a lane's 16 bytes of P4.
    pub const fn p4_offset(self, block: usize, lane: usize) -> usize {
        (block * LANES + lane) * 16
    }

    /// Within a unit: a lane's bytes of the extra plane.
    pub const fn extra_offset(self, block: usize, lane: usize) -> usize {
        P4_BYTES + (block * LANES + lane) * self.extra_lane_bytes()
    }

    /// Within a unit: scale (`which` 0) or minimum (1) of a row and a group.
    pub const fn meta_offset(self, row: usize, which: usize, group: usize) -> usize {
        let (entry, half) = entry_of(row);
        self.meta_begin()
            + entry * self.meta_entry_bytes()
            + ((which * 2 + half) * self.unit_groups() + group) * self.scale_bytes()
    }

    /// Within super scales: `d` (`which` 0) or `dmin` (1) of a row.
    pub const fn super_scale_offset(self, row: usize, which: usize) -> usize {
        let (entry, half) = entry_of(row);
        entry * self.super_entry_bytes() + (which * 2 + half) * 2
    }

    /// Bytes of a group's scale: fp16, or a byte that multiplies a super scale.
    const fn scale_bytes(self) -> usize {
        if self.codes.super_block { 1 } else { 2 }
    }
}

/// Metadata entry of a row of a unit, and which of its two rows it is.
const fn entry_of(row: usize) -> (usize, usize) {
    (row / BLOCK_ROWS * ENTRIES + row % ENTRIES, row % BLOCK_ROWS / ENTRIES)
}
