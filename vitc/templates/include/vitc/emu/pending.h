// Asynchronous work that a kernel has issued and that has not been done: it is done as late as its
// waits allow (async_copy.h, tensor_copy.h, wgmma.h).
#pragma once

#include <cstdint>
#include <vector>

#include "vitc/emu/site.h"
#include "vitc/emu/tensor_map.h"

namespace vitc::emu {

struct Block;
struct Thread;

struct PendingCopy {  // cp.async, of a thread
  void* target;
  const void* source;
  unsigned bytes, source_bytes, group;
  Site site;
};

struct BarrierInit {  // mbarrier.init that its thread has not fenced
  const uint64_t* barrier;
  const Thread* thread;
  Site site;
};

struct PendingTensorCopy {  // cp.async.bulk.tensor, to one block
  TensorMap map;
  int32_t first[TensorMap::kMostRank];
  char* target;
  uint64_t* barrier;
  Site site;
};

struct PendingProduct {  // wgmma.mma_async, one thread's part
  float* sums;
  uint64_t a, b;
  uint32_t a_registers[4];
  unsigned columns, group;
  bool a_in_registers, b_transposed, bfloat, replaces;
  Site site;
  uint32_t fenced = 0;  // the thread's latest proxy fence at the issue

  // Whether another thread of the warpgroup issued the same instruction.
  bool same(const PendingProduct& other) const {
    return site == other.site && columns == other.columns && a == other.a && b == other.b &&
           group == other.group;
  }
};

struct Read {           // of operands in shared memory
  uint32_t begin, end;  // offsets
  unsigned warps;       // a bit for each
  Site site;

  void add(uint32_t offset) {
    if (offset < begin) begin = offset;
    if (offset + 16 > end) end = offset + 16;
  }
};

struct Accumulator {  // sums of products under way; the thread's own registers are NaN meanwhile
  float* sums;
  unsigned uses;  // products not yet done
  std::vector<float> values;
};

}  // namespace vitc::emu
