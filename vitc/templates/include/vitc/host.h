// The C ABI over a table and a device: model.cc defines vitc::host::kTable and vitc::host::Device,
// then includes this file, once per library.
#pragma once
#include <algorithm>
#include <memory>

#include "vitc/host/context.h"
#include "vitc/host/error.h"
#include "vitc/host/model.h"
#include "vitc/vitc.h"

struct vitc_model {
  std::shared_ptr<vitc::host::Model<vitc::host::Device>> model;
};

struct vitc_context {
  vitc::host::Context<vitc::host::Device> context;
};

namespace vitc::host {

inline void describe(List<Port> ports, int32_t index, const char** name, vitc_tensor* info) {
  require_pointer(info, "info");
  if (index < 0 || index >= ports.size) {
    fail(VITC_INVALID_ARGUMENT, "index %d: the library has %d", index, ports.size);
  }
  const Port& port = ports[index];
  if (name != nullptr) *name = port.name;
  *info = vitc_tensor{nullptr, port.dtype, port.rank, {}};
  std::copy(port.shape, port.shape + port.rank, info->shape);
}

}  // namespace vitc::host

extern "C" {

int32_t vitc_abi_version(void) { return VITC_ABI_VERSION; }

const char* vitc_last_error(void) { return vitc::host::last_error; }

const char* vitc_manifest(void) { return vitc::host::kTable.manifest; }

int32_t vitc_input_count(void) { return vitc::host::kTable.inputs.size; }

int32_t vitc_output_count(void) { return vitc::host::kTable.outputs.size; }

vitc_status vitc_input_info(int32_t index, const char** name, vitc_tensor* info) {
  return vitc::host::guarded(
      __func__, [&] { vitc::host::describe(vitc::host::kTable.inputs, index, name, info); });
}

vitc_status vitc_output_info(int32_t index, const char** name, vitc_tensor* info) {
  return vitc::host::guarded(
      __func__, [&] { vitc::host::describe(vitc::host::kTable.outputs, index, name, info); });
}

vitc_status vitc_model_create(int32_t device, const char* weights_path, vitc_model** model) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(model, "model");
    *model = new vitc_model{std::make_shared<Model<Device>>(kTable, device, weights_path)};
  });
}

vitc_status vitc_model_destroy(vitc_model* model) {
  return vitc::host::guarded(__func__, [&] { delete model; });
}

vitc_status vitc_model_set_weights(vitc_model* model, const vitc_weight* weights, int32_t count) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(model, "model");
    if (count < 0) fail(VITC_INVALID_ARGUMENT, "count is %d", count);
    if (count > 0) require_pointer(weights, "weights");
    model->model->set_weights(weights, count);
  });
}

vitc_status vitc_context_create(vitc_model* model, int32_t threads, vitc_context** context) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(model, "model");
    require_pointer(context, "context");
    *context = new vitc_context{{model->model, threads}};
  });
}

vitc_status vitc_context_destroy(vitc_context* context) {
  return vitc::host::guarded(__func__, [&] { delete context; });
}

vitc_status vitc_run(vitc_context* context, const vitc_tensor* inputs, int32_t input_count,
                     const vitc_tensor* outputs, int32_t output_count, void* stream) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(context, "context");
    context->context.run({{inputs, input_count}, {outputs, output_count}, stream}, 0,
                         context->context.step_count());
  });
}

vitc_status vitc_run_steps(vitc_context* context, const vitc_tensor* inputs, int32_t input_count,
                           const vitc_tensor* outputs, int32_t output_count, void* stream,
                           int32_t first, int32_t last) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(context, "context");
    context->context.run({{inputs, input_count}, {outputs, output_count}, stream}, first, last);
  });
}

vitc_status vitc_read(vitc_context* context, uint64_t offset, void* host, uint64_t bytes) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(context, "context");
    require_pointer(host, "host");
    context->context.read(offset, host, bytes);
  });
}

vitc_status vitc_profile(vitc_context* context, const vitc_tensor* inputs, int32_t input_count,
                         const vitc_tensor* outputs, int32_t output_count, void* stream,
                         int32_t repeats, float* microseconds, int32_t step_count) {
  using namespace vitc::host;
  return guarded(__func__, [&] {
    require_pointer(context, "context");
    require_pointer(microseconds, "microseconds");
    if (repeats < 1) fail(VITC_INVALID_ARGUMENT, "repeats is %d, at least 1", repeats);
    if (step_count != context->context.step_count()) {
      fail(VITC_INVALID_ARGUMENT, "step_count is %d, the library has %d steps", step_count,
           context->context.step_count());
    }
    context->context.profile({{inputs, input_count}, {outputs, output_count}, stream}, repeats,
                             microseconds);
  });
}

}  // extern "C"
