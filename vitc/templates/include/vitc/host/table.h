// What the generated model.cc says about its model; the rest of vitc/host interprets it.
#pragma once
#include <cstddef>
#include <cstdint>

#include "vitc/kernel.h"
#include "vitc/vitc.h"

namespace vitc::host {

struct Port {  // an input or output
  const char* name;
  vitc_dtype dtype;
  int32_t rank;
  int64_t shape[VITC_MAX_RANK];  // shape[0] is the maximum batch
  const char* dims[VITC_MAX_RANK];
};

struct Weight {
  const char* name;
  uint64_t offset;  // from the end of the payload's header
  uint64_t bytes;
};

enum class Space : uint8_t { kInput, kOutput, kWeight, kWorkspace };

struct Arg {
  Space space;
  uint64_t at;  // index of an input, output or weight; byte offset in the workspace
};

struct Kernel {
  KernelFn run;
  ScratchFn scratch;
};

struct Step {
  const char* name;
  const Kernel* kernels;  // one per entry of Table::isas
  const Arg* args;
  int32_t arg_count;
};

// A list with its length. Arrays of length 0 do not exist in C++, hence the pointer.
template <class T>
struct List {
  const T* data;
  int32_t size;

  const T& operator[](int32_t i) const { return data[i]; }
  const T* begin() const { return data; }
  const T* end() const { return data + size; }
};

struct Table {
  const char* manifest;
  List<const char*> isas;  // from the least to the most demanding
  List<Port> inputs;
  List<Port> outputs;
  List<Weight> weights;
  const char* payload_header;  // the payload starts with exactly these bytes
  uint64_t payload_header_bytes;
  uint64_t payload_data_bytes;
  uint64_t workspace_bytes;
  List<Step> steps;
};

}  // namespace vitc::host
