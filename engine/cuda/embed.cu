// Rows of the embedding, from the same bytes that the head reads, and what adapters make of them.
//
//   embed            x[t, i] = table[token_ids[t], i]        bit-equal to the CPU's dequantized values
//   embed_adapters   x[t, i] = own[slot[t]][token_ids[t], i], where the adapter has an embedding of its own; then
//                    x[t, i] += lora_scale sum_r b[i, r] a[token_ids[t], r], where it has LoRA on the embedding
//
// | buffer    | shape         | dtype                       | note                                        |
// |-----------|---------------|-----------------------------|---------------------------------------------|
// | table     | [V][W]        | tiles and planes (tile.cuh) | or rows of f32, f16, bf16, W padded to 64   |
// | token_ids | [T]           | u32                         | an id from V on gives zeros                 |
// | x         | [T][x_stride] | f32                         | columns from W on are not written           |
// | own       | by slot [V][W up to 64] | f16               | or null: x stays                            |
// | a, b      | by slot [V], [W] x [R up to 8] | f16        | rank 0: x stays; zero beyond R              |
//
// One CTA of 256 threads a row and 256 columns, one value a thread. Rows are few and this runs once a step: not tuned.
#include "step.cuh"
#include "tile.cuh"

constexpr u32 THREADS = 256;

struct EmbedParams {
  const StepHeader* step;
  const u8* table;
  const u32* token_ids;
  f32* x;
  u32 vocab;
  u32 width;
  /// W rounded up to 64.
  u32 width_padded;
  u32 x_stride;
  /// Number of the table's format.
  u32 format;
  u32 _pad;
};
static_assert(sizeof(EmbedParams) == 56, "as in ops/embed.rs");

extern "C" __global__ void __launch_bounds__(THREADS) embed(const __grid_constant__ EmbedParams p) {
  const auto format = static_cast<pleach::Format>(p.format);
  const pleach::CodeLayout layout = pleach::code_layout(format);
  const u32 i = blockIdx.x * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  if (i >= p.width) return;
  for (u32 t = blockIdx.y; t < n_rows; t += gridDim.y) {
    const u32 token = p.token_ids[t];
    const u64 at = u64(token) * p.width_padded + i;
    f32 value = 0.0f;
    // The host has checked ids; a wrong one must still not read outside the table.
    if (token < p.vocab) {
      if (format == pleach::Format::F32) {
        value = reinterpret_cast<const f32*>(p.table)[at];
      } else if (format == pleach::Format::F16) {
        value = half_to_float(reinterpret_cast<const u16*>(p.table)[at]);
      } else if (format == pleach::Format::BF16) {
        value = __uint_as_float(u32(reinterpret_cast<const u16*>(p.table)[at]) << 16);
      } else {
        value = pleach::value_at(layout, p.table, p.width_padded / pleach::UNIT_K, token, i);
      }
    }
    p.x[u64(t) * p.x_stride + i] = value;
  }
}

struct EmbedAdaptersParams {
  const StepHeader* step;
  const u32* token_ids;
  const u32* slots;
  const LoraSite* sites;
  const OwnMatrices* own;
  f32* x;
  u32 vocab;
  u32 width;
  /// Distance of rows of an adapter's own embedding: W rounded up to 64.
  u32 own_stride;
  u32 x_stride;
  u32 n_sites;
  /// Of the embedding, in the slot table.
  u32 site;
};
static_assert(sizeof(EmbedAdaptersParams) == 72, "as in ops/embed.rs");

extern "C" __global__ void __launch_bounds__(THREADS) embed_adapters(const __grid_constant__ EmbedAdaptersParams p) {
  const u32 i = blockIdx.x * THREADS + threadIdx.x;
  const u32 n_rows = p.step->n_rows;
  if (i >= p.width) return;
  for (u32 t = blockIdx.y; t < n_rows; t += gridDim.y) {
    const u32 slot = p.slots[t], token = p.token_ids[t];
    if (slot == NO_SLOT || token >= p.vocab) continue;
    const u16* own = p.own[slot].embedding;
    const LoraSite site = p.sites[u64(slot) * p.n_sites + p.site];
    if (!own && site.rank == 0) continue;
    f32* x = p.x + u64(t) * p.x_stride + i;
    const f32 value = own ? half_to_float(own[u64(token) * p.own_stride + i]) : *x;
    const u32 n_words = div_up(site.rank, 8);
    const uint4* a = reinterpret_cast<const uint4*>(site.a) + u64(token) * n_words;
    const uint4* b = reinterpret_cast<const uint4*>(site.b) + u64(i) * n_words;
    f32 delta = 0.0f;
    for (u32 word = 0; word < n_words; ++word) {
      f32 v[8], w[8];
      unpack8(a[word], v);
      unpack8(b[word], w);
#pragma unroll
      for (u32 e = 0; e < 8; ++e) delta = fmaf(w[e], v[e], delta);
    }
    *x = fmaf(site.lora_scale, delta, value);
  }
}
