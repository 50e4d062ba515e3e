// Checks the tensors of a call against the table, so that kernels need not.
#pragma once
#include <cstring>
#include <string>

#include "vitc/host/error.h"
#include "vitc/host/table.h"

namespace vitc::host {

struct DtypeInfo {
  const char* name;
  uint64_t bytes;
};

// Callers may have put anything into the enum, and C++ does not let one load it as such then.
inline int32_t dtype_code(const vitc_tensor& tensor) {
  static_assert(sizeof(vitc_dtype) == sizeof(int32_t));
  int32_t code;
  std::memcpy(&code, &tensor.dtype, sizeof code);
  return code;
}

inline DtypeInfo dtype_info(int32_t dtype) {
  constexpr DtypeInfo kKnown[] = {{"float32", 4}, {"float16", 2},     {"bfloat16", 2},
                                  {"int8", 1},    {"float8_e4m3", 1}, {"uint8", 1},
                                  {"int32", 4},   {"int64", 8}};
  constexpr int kCount = sizeof kKnown / sizeof *kKnown;
  return dtype >= 0 && dtype < kCount ? kKnown[dtype] : DtypeInfo{"an unknown dtype", 0};
}

struct Tensors {
  const vitc_tensor* data;
  int32_t size;
};

class CallChecker {
 public:
  // alignment: bytes to which data must be aligned.
  CallChecker(const Table& table, uint64_t alignment) : table_(table), alignment_(alignment) {}

  // The batch of the call. Fails with the name of the tensor and of the dimension that is wrong.
  int64_t check(Tensors inputs, Tensors outputs) {
    check_ports("input", table_.inputs, inputs);
    check_ports("output", table_.outputs, outputs);
    for (int32_t i = 0; i < outputs.size; ++i) {
      for (int32_t j = 0; j < inputs.size; ++j) {
        check_apart(table_.outputs[i], outputs.data[i], "input", table_.inputs[j], inputs.data[j]);
      }
      for (int32_t j = 0; j < i; ++j) {
        check_apart(table_.outputs[i], outputs.data[i], "output", table_.outputs[j],
                    outputs.data[j]);
      }
    }
    return batch_;
  }

 private:
  void check_ports(const char* kind, List<Port> ports, Tensors given) {
    if (given.size != ports.size) {
      fail(VITC_INVALID_ARGUMENT, "%d %s%s given, the library has %d", given.size, kind,
           given.size == 1 ? "" : "s", ports.size);
    }
    if (given.size > 0 && given.data == nullptr) {
      fail(VITC_INVALID_ARGUMENT, "the array of %ss is NULL", kind);
    }
    for (int32_t i = 0; i < ports.size; ++i) check_tensor(kind, ports[i], given.data[i]);
  }

  void check_tensor(const char* kind, const Port& port, const vitc_tensor& tensor) {
    if (const int32_t given = dtype_code(tensor); given != port.dtype) {
      fail(VITC_INVALID_ARGUMENT, "%s '%s' is %s, the library was compiled for %s", kind, port.name,
           dtype_info(given).name, dtype_info(port.dtype).name);
    }
    if (tensor.rank != port.rank) {
      std::string dims;
      for (int32_t d = 0; d < port.rank; ++d)
        dims += (d == 0 ? "" : ", ") + std::string(port.dims[d]);
      fail(VITC_INVALID_ARGUMENT, "%s '%s' has rank %d, the library was compiled for rank %d (%s)",
           kind, port.name, tensor.rank, port.rank, dims.c_str());
    }
    for (int32_t d = 1; d < port.rank; ++d) {
      if (tensor.shape[d] == port.shape[d]) continue;
      fail(VITC_INVALID_ARGUMENT,
           "%s '%s' dimension %d (%s) is %" PRId64 ", the library was compiled for %" PRId64, kind,
           port.name, d, port.dims[d], tensor.shape[d], port.shape[d]);
    }
    check_batch(kind, port, tensor.shape[0]);
    if (tensor.data == nullptr) {
      fail(VITC_INVALID_ARGUMENT, "the data of %s '%s' is NULL", kind, port.name);
    }
    if (reinterpret_cast<uintptr_t>(tensor.data) % alignment_ != 0) {
      fail(VITC_INVALID_ARGUMENT,
           "the data of %s '%s' is not aligned to %" PRIu64 " bytes; pass a copy", kind, port.name,
           alignment_);
    }
  }

  void check_batch(const char* kind, const Port& port, int64_t batch) {
    if (batch < 1 || batch > port.shape[0]) {
      fail(VITC_INVALID_ARGUMENT,
           "%s '%s' dimension 0 (batch) is %" PRId64 ", the library was compiled for 1 to %" PRId64,
           kind, port.name, batch, port.shape[0]);
    }
    if (batch_ == 0) {
      batch_ = batch;
      batch_from_ = port.name;
    } else if (batch != batch_) {
      fail(VITC_INVALID_ARGUMENT, "%s '%s' has batch %" PRId64 ", '%s' has %" PRId64, kind,
           port.name, batch, batch_from_, batch_);
    }
  }

  uint64_t bytes(const Port& port) const {
    uint64_t size = dtype_info(port.dtype).bytes * static_cast<uint64_t>(batch_);
    for (int32_t d = 1; d < port.rank; ++d) size *= static_cast<uint64_t>(port.shape[d]);
    return size;
  }

  void check_apart(const Port& out, const vitc_tensor& out_tensor, const char* kind,
                   const Port& other, const vitc_tensor& other_tensor) const {
    const auto first = reinterpret_cast<uintptr_t>(out_tensor.data);
    const auto second = reinterpret_cast<uintptr_t>(other_tensor.data);
    if (first < second + bytes(other) && second < first + bytes(out)) {
      fail(VITC_INVALID_ARGUMENT, "output '%s' overlaps %s '%s' in memory", out.name, kind,
           other.name);
    }
  }

  const Table& table_;
  const uint64_t alignment_;
  int64_t batch_ = 0;
  const char* batch_from_ = "";
};

}  // namespace vitc::host
