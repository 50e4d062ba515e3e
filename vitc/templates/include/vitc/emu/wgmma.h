// wgmma.mma_async: D[64, N] (+)= A[64, 16] * B[N, 16]^T of 16-bit elements by the 128 threads of a
// warpgroup. Thread t holds at d[4 j + 2 h + e] row 16 (t / 32) + t % 32 / 4 + 8 h, column
// 8 j + 2 (t % 4) + e; A in registers as mma.h states for K = 16, 16 rows a warp.
//
// A product is done at the wait that promises it, when all four warps stand there and nothing else
// can run: until then its sums are NaN, and its shared operands are read only then, so a tile that
// is overwritten too early shows. Registers of A are taken at the issue: for a compiler they are
// values, not places. Stricter than hardware: the four warps wait together.
#pragma once

#include "vitc/emu/descriptor.h"
#include "vitc/emu/numeric.h"
#include "vitc/emu/proxy.h"

namespace vitc::emu {

constexpr unsigned kWarpgroup = 128;

inline void products_fence() {
  machine->current->products_fenced = machine->current->registers_fenced = true;
}
inline void products_commit() {
  ++machine->current->product_group;
  machine->current->registers_fenced = false;
}

inline Accumulator* find_accumulator(Thread& thread, const float* sums) {
  for (Accumulator& a : thread.accumulators) {
    if (a.sums == sums) return &a;
  }
  return nullptr;
}

inline void issue_product(PendingProduct product, Site site) {
  Thread& self = *machine->current;
  Accumulator* sums = find_accumulator(self, product.sums);
  const unsigned count = product.columns / 2;
  if (sums == nullptr && !self.products_fenced) {
    fail(site, "wgmma on registers that were not fenced since the last wait");
  }
  if (product.a_in_registers && !self.registers_fenced) {
    fail(site, "wgmma with A in registers that were not fenced since the last commit or wait");
  }
  if (sums != nullptr && sums->values.size() != count) {
    fail(site, "wgmma of %u columns on the sums of another width under way", product.columns);
  }
  if (sums == nullptr) {
    self.accumulators.push_back({product.sums, 0, {product.sums, product.sums + count}});
    std::memset(product.sums, 0xff, count * sizeof(float));
    sums = &self.accumulators.back();
  }
  ++sums->uses;
  product.site = site;
  product.group = self.product_group;
  product.fenced = self.fenced;
  self.operation = "wgmma";
  self.products.push_back(product);
}

// All but the latest `pending` commits are done.
inline void products_wait(unsigned pending, Site site) {
  Thread& self = *machine->current;
  self.products_fenced = self.registers_fenced = false;
  if (self.products.empty() || self.products[0].group + pending >= self.product_group) return;
  self.products_pending = pending;
  stop(State::at_products, "products wait", nullptr, site);
}

typedef float Columns8 __attribute__((vector_size(32)));

struct ProductTile {
  alignas(32) float sums[64][256], a[64][16], b[16][256];
  Read reads[5];  // of A by each warp, of B by all
};

// 8 elements of an operand; false, with a failure recorded, if they cannot be read. `fenced`: when
// all threads of the group had fenced.
inline bool load_chunk(const Block& block, uint32_t address, const Thread* group,
                       const PendingProduct& product, uint32_t fenced, float (&out)[8]) {
  const uint32_t offset = address - kSharedBase;
  if (address < kSharedBase || offset + 16 > block.shared.dynamic_bytes()) {
    fail_block(group, product.site, "wgmma operand outside shared memory");
    return false;
  }
  if (!visible(block, offset, fenced, "wgmma operand", group, product.site)) return false;
  uint16_t bits[8];
  std::memcpy(bits, block.shared.dynamic() + offset, 16);
  for (int i = 0; i < 8; ++i) {
    out[i] = product.bfloat ? to_float(bfloat16{bits[i]}) : to_float(half{bits[i]});
  }
  return true;
}

// Reads A and B as floats; false, with a failure recorded, if they cannot be read.
inline bool load_operands(const Block& block, const Thread* group, size_t index,
                          ProductTile& tile) {
  const PendingProduct& p = group->products[index];
  Descriptor a{}, b{};
  float chunk[8];
  if (!Descriptor::decode(p.b, &b) || (!p.a_in_registers && !Descriptor::decode(p.a, &a))) {
    fail_block(group, p.site, "wgmma operand with a base offset: not emulated");
    return false;
  }
  const unsigned first_warp = group->id / kWarp;
  for (unsigned i = 0; i < 5; ++i) {
    tile.reads[i] = {~0u, 0, (i < 4 ? 1u << i : 15u) << first_warp, p.site};
  }
  uint32_t fenced = p.fenced;
  for (unsigned t = 1; t < kWarpgroup; ++t) {
    fenced = std::min(fenced, group[t].products[index].fenced);
  }
  for (unsigned n = 0; n < p.columns / 8 * 16; ++n) {  // one chunk of B each
    const unsigned c = n / 16, i = n % 16;
    const uint32_t at = p.b_transposed ? b.column_chunk(c, i) : b.row_chunk(c * 8 + i / 2, i % 2);
    if (!load_chunk(block, at, group, p, fenced, chunk)) return false;
    tile.reads[4].add(at - kSharedBase);
    for (unsigned e = 0; e < 8; ++e) {
      if (p.b_transposed) {
        tile.b[i][c * 8 + e] = chunk[e];
      } else {
        tile.b[i % 2 * 8 + e][c * 8 + i / 2] = chunk[e];
      }
    }
  }
  if (!p.a_in_registers) {
    for (unsigned n = 0; n < 128; ++n) {
      const uint32_t at = a.row_chunk(n / 2, n % 2);
      if (!load_chunk(block, at, group, p, fenced, chunk)) return false;
      tile.reads[n / 32].add(at - kSharedBase);
      std::memcpy(&tile.a[n / 2][n % 2 * 8], chunk, sizeof chunk);
    }
    return true;
  }
  for (unsigned t = 0; t < kWarpgroup; ++t) {
    const uint32_t* registers = group[t].products[index].a_registers;
    for (unsigned i = 0; i < 8; ++i) {
      const uint16_t bits = uint16_t(registers[i / 2] >> i % 2 * 16);
      const unsigned row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
      tile.a[row][t % 4 * 2 + i % 2 + i / 4 * 8] =
          p.bfloat ? to_float(bfloat16{bits}) : to_float(half{bits});
    }
  }
  return true;
}

inline void multiply(ProductTile& tile, unsigned columns, bool replaces) {
  for (unsigned i = 0; i < 64; ++i) {
    for (unsigned j = 0; j < columns; j += 8) {
      Columns8 sum = {};
      if (!replaces) std::memcpy(&sum, &tile.sums[i][j], sizeof sum);
      for (unsigned k = 0; k < 16; ++k) {
        Columns8 b;
        std::memcpy(&b, &tile.b[k][j], sizeof b);
        sum += tile.a[i][k] * b;
      }
      std::memcpy(&tile.sums[i][j], &sum, sizeof sum);
    }
  }
}

// Moves sums between the tile and the threads' accumulators.
inline void exchange(ProductTile& tile, Thread* group, size_t index, bool to_threads) {
  for (unsigned t = 0; t < kWarpgroup; ++t) {
    const PendingProduct& p = group[t].products[index];
    float* values = find_accumulator(group[t], p.sums)->values.data();
    for (unsigned i = 0; i < p.columns / 2; i += 2) {
      const unsigned row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
      float* sums = &tile.sums[row][i / 4 * 8 + t % 4 * 2];
      std::memcpy(to_threads ? values + i : sums, to_threads ? sums : values + i, 8);
    }
  }
}

// Gives finished sums to the thread's registers, which nobody may have written meanwhile.
inline bool give_sums(Thread& thread, size_t done) {
  for (size_t i = 0; i < done; ++i) --find_accumulator(thread, thread.products[i].sums)->uses;
  for (size_t i = 0; i < thread.accumulators.size();) {
    Accumulator& a = thread.accumulators[i];
    if (a.uses > 0) {
      ++i;
      continue;
    }
    for (size_t j = 0; j < a.values.size(); ++j) {
      uint32_t bits;
      std::memcpy(&bits, a.sums + j, sizeof bits);
      if (bits != 0xffffffffu) {
        fail_block(&thread, thread.site, "sums were written before the wait for their products");
        return false;
      }
    }
    std::memcpy(a.sums, a.values.data(), a.values.size() * sizeof(float));
    thread.accumulators.erase(thread.accumulators.begin() + long(i));
  }
  thread.products.erase(thread.products.begin(), thread.products.begin() + long(done));
  return true;
}

// Does the products that a whole warpgroup waits for; false on failure.
inline bool finish_products(Block& block, Thread* group) {
  const size_t issued = group->products.size();
  size_t done = 0;
  while (done < issued &&
         group->products[done].group + group->products_pending < group->product_group) {
    ++done;
  }
  for (unsigned t = 1; t < kWarpgroup; ++t) {
    bool same = group[t].products.size() == issued && group[t].site == group->site &&
                group[t].products_pending == group->products_pending;
    for (size_t i = 0; same && i < issued; ++i) {
      same = group[t].products[i].same(group->products[i]);
    }
    if (!same) {
      fail_block(group + t, group[t].site, "divergent wgmma: not what thread %u issued", group->id);
      return false;
    }
  }
  ProductTile& tile = *static_cast<ProductTile*>(machine->product_tile());
  const unsigned warps = 15u << group->id / kWarp;
  const auto earlier = [&](const Read& read) { return (read.warps & warps) != 0; };
  block.reads.erase(std::remove_if(block.reads.begin(), block.reads.end(), earlier),
                    block.reads.end());
  for (size_t i = 0; i < done; ++i) {
    const PendingProduct& p = group->products[i];
    if (i == 0 || group->products[i - 1].sums != p.sums) exchange(tile, group, i, false);
    if (!load_operands(block, group, i, tile)) return false;
    block.reads.insert(block.reads.end(), tile.reads, tile.reads + 5);
    multiply(tile, p.columns, p.replaces);
    if (i + 1 == done || group->products[i + 1].sums != p.sums) exchange(tile, group, i, true);
  }
  block.resuming |= warps;
  machine->statistics.wgmma += done;
  for (unsigned t = 0; t < kWarpgroup; ++t) {
    if (!give_sums(group[t], done)) return false;
    group[t].state = State::ready;
  }
  return true;
}

// Every warpgroup that stands at a wait; false on failure.
inline bool finish_awaited(bool* progress) {
  Machine& m = *machine;
  for (const auto& block : m.blocks) {
    for (unsigned first = 0; first + kWarpgroup <= m.thread_count; first += kWarpgroup) {
      unsigned waiting = 0;
      while (waiting < kWarpgroup && block->threads[first + waiting].state == State::at_products) {
        ++waiting;
      }
      if (waiting < kWarpgroup) continue;
      if (!finish_products(*block, block->threads + first)) return false;
      *progress = true;
    }
  }
  return true;
}

}  // namespace vitc::emu
