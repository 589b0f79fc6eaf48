// What both attention kernels take.
#pragma once

#include "step.cuh"

/// Rows of one sequence that attend together: consecutive positions; Rust: `ops::AttentionTile`.
struct AttentionTile {
  u32 sequence;
  u32 first_row;
  /// At most 64 / (query heads per kv head).
  u32 n_rows;
  u32 first_position;
};

struct AttentionParams {
  const StepHeader* step;
  const u16* q;
  const u16* kv;
  u16* out;
  /// Of rows that attend one by one; see attention.cu.
  f32* partials;
  const u32* single_rows;
  const AttentionTile* tiles;
  const u32* positions;
  const u32* row_sequence;
  const u32* block_tables;
  u32 q_stride;
  u32 out_stride;
  u32 n_heads;
  u32 n_kv_heads;
  u32 head_dim;
  u32 max_blocks;
  u32 chunk_tokens;
  /// Chunks of the longest context: room in `partials`.
  u32 max_chunks;
};
static_assert(sizeof(AttentionParams) == 112, "as in ops/attention.rs");
