// What varies from step to step. Kernels read it from device memory, so that a captured graph can be replayed with
// another batch: a launch made for a bucket of rows does only the rows that are there.
#pragma once

#include "base.cuh"

/// Counts of one step; Rust: `ops::StepHeader`.
struct StepHeader {
  /// Rows, `T`.
  u32 n_rows;
  /// Sequences, `S`.
  u32 n_sequences;
  /// Rows whose logits are wanted.
  u32 n_sample_rows;
  /// Tiles of rows with the same adapter, or none; 0 in steps of few rows, which take rows one by one. In the header of the
  /// head, whose rows are those whose logits are wanted: tiles of rows with a head of their adapter's own.
  u32 n_adapter_tiles;
  /// Rows that attend one by one (decode), see attention.cu.
  u32 n_single_rows;
  /// Tiles of rows that attend together (prefill), see attention_tiles.cu.
  u32 n_tiles;
  u32 _pad[2];
};
static_assert(sizeof(StepHeader) == 32, "as in ops/step.rs");

/// One site of one resident adapter: an entry of the slot table `[slots][n_sites]`; Rust: `ops::LoraSite`.
struct LoraSite {
  /// `A`, f16 `[R][a_stride]`; of the embedding transposed, `[V][R rounded up to 8]`, zero beyond `R`.
  const u16* a;
  /// `B`, f16 `[N][R rounded up to 8]`, zero beyond `R`.
  const u16* b;
  /// DoRA: `m[n] / ||W[n] + lora_scale (B A)[n]||`, f32 `[N up to 4]`, 16-byte aligned; null: 1.
  const f32* gain;
  /// lora_scale times the bias of lora_B, as `gain`; null: 0.
  const f32* shift;
  /// `R`, at most LORA_RANK_MAX; 0 = the adapter does not act here.
  u32 rank;
  /// alpha / R.
  f32 lora_scale;
};
static_assert(sizeof(LoraSite) == 40, "as in ops/step.rs");

/// Matrices of an adapter's own, in place of the base's: an entry of a table by slot; Rust: `ops::OwnMatrices`.
/// f16 `[V][hidden up to 64]`, 16-byte aligned, zero beyond the width; null: the base's.
struct OwnMatrices {
  const u16* embedding;
  const u16* head;
};
static_assert(sizeof(OwnMatrices) == 16, "as in ops/step.rs");

/// Consecutive rows of one adapter, or of none (NO_SLOT); Rust: `ops::AdapterTile`.
struct AdapterTile {
  u32 slot;
  u32 first_row;
  /// At most ADAPTER_TILE_ROWS.
  u32 n_rows;
  u32 _pad;
};
static_assert(sizeof(AdapterTile) == 16, "as in ops/step.rs");

/// Most rows of an AdapterTile.
constexpr u32 ADAPTER_TILE_ROWS = 64;

/// Largest rank, and so the distance of two parts in a row of `v`; Rust: `adapter_weights`.
constexpr u32 LORA_RANK_MAX = 512;
/// Linears that read the same input.
constexpr u32 PARTS_MAX = 3;
constexpr u32 V_STRIDE = PARTS_MAX * LORA_RANK_MAX;

/// Tokens in one KV block.
constexpr u32 KV_BLOCK_TOKENS = 16;

/// Where keys (which = 0) or values (1) of one token and head lie in a layer's pool, in halves:
/// `[block][kv_head][K, V][16 tokens][D]`.
__device__ __forceinline__ u64 kv_offset(u32 block, u32 n_kv_heads, u32 kv_head, u32 which, u32 token, u32 head_dim) {
  const u64 plane = (u64(block) * n_kv_heads + kv_head) * 2 + which;
  return (plane * KV_BLOCK_TOKENS + token) * head_dim;
}
