// Lists what `tile.cuh` says, for a test in Rust to compare with `tile.rs` (src/cuda/tests/header.rs).
//
//   tile_offsets                                   all offsets as text
//   tile_offsets FORMAT N K MATRIX VALUES          decodes the packed bytes of a padded matrix into f32 [N][K]
#include "tile.cuh"

#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace pleach;

static void list_offsets() {
  for (Format format : {Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Q2_K,
                        Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K}) {
    CodeLayout l = code_layout(format);
    u32 n_units = 8;
    std::printf("format %u bits %u offset %u group %u min %u super %u\n", u32(format), l.bits, l.offset, l.group,
                u32(l.has_min), u32(l.super_block));
    std::printf("unit %u super %u stripe %llu\n", unit_bytes(l), super_bytes(l), stripe_bytes(l, n_units));
    for (u32 unit = 0; unit < n_units; unit++) {
      std::printf("at %llu %llu\n", unit_offset(l, n_units, 3, unit), super_offset(l, n_units, 3, unit));
    }
    for (u32 block = 0; block < BLOCKS; block++) {
      for (u32 lane = 0; lane < LANES; lane++) {
        std::printf("lane %u %u\n", p4_offset(block, lane), extra_offset(l, block, lane));
      }
    }
    for (u32 row = 0; row < STRIPE_ROWS; row++) {
      u32 block = row / BLOCK_ROWS, r = row % 8, half = row % BLOCK_ROWS / 8;
      for (u32 which = 0; which < 2; which++) {
        for (u32 group = 0; group < unit_groups(l); group++) {
          std::printf("%u ", meta_offset(l, block, r) + meta_in_entry(l, which, half, group));
        }
        std::printf("%u\n", super_scale_offset(l, block, r, which, half));
      }
    }
  }
  for (u32 row = 0; row < STRIPE_ROWS; row++) {
    for (u32 k = 0; k < UNIT_K; k++) {
      Place p = place(row, k);
      std::printf("place %u %u %u %u %u %u %u %u %u\n", p.block, p.lane, p.step, p.reg, p.element, p4_shift(p),
                  p1_shift(p), p2_word(p), p2_shift(p));
    }
  }
}

static int decode(char** argv) {
  CodeLayout l = code_layout(Format(std::atoi(argv[1])));
  u32 n_out = u32(std::atoi(argv[2])), n_in = u32(std::atoi(argv[3]));
  u32 n_units = n_in / UNIT_K;
  std::vector<u8> matrix(size_t(n_out / STRIPE_ROWS) * stripe_bytes(l, n_units));
  std::FILE* in = std::fopen(argv[4], "rb");
  if (!in || std::fread(matrix.data(), 1, matrix.size(), in) != matrix.size() || std::fgetc(in) != EOF) return 2;
  std::fclose(in);
  std::vector<float> values;
  for (u32 n = 0; n < n_out; n++) {
    for (u32 k = 0; k < n_in; k++) values.push_back(value_at(l, matrix.data(), n_units, n, k));
  }
  std::FILE* out = std::fopen(argv[5], "wb");
  if (!out || std::fwrite(values.data(), 4, values.size(), out) != values.size()) return 3;
  return std::fclose(out) ? 4 : 0;
}

int main(int argc, char** argv) {
  if (argc == 6) return decode(argv);
  list_offsets();
  return 0;
}
