// Runs the toy's library for GPUs, without waiting where nobody need wait, on a fake runtime that
// does all work as late as it may. Usage: lifetimes WEIGHTS.safetensors SEED
#include <vitc/kernel.h>
#include <vitc/vitc.h>

#include <set>
#include <string>
#include <thread>

#include "fake_cuda.h"

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, vitc_last_error()); \
      std::_Exit(1);                                                                      \
    }                                                                                     \
  } while (0)

namespace {

constexpr int64_t kPlane = 35, kImage = 3 * kPlane, kBatch = 4;
int failing = 0;  // the kernel that fails at a batch of 3; 0: none

template <class Run>
int kernel(int number, const vitc::Call& call, int args, const Run& run) {
  const std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  fake::Stream* stream = fake::from(reinterpret_cast<cudaStream_t>(call.exec));
  static std::set<int64_t> loaded;  // each batch has a kernel of its own, which no capture may load
  if (number == failing && call.batch == 3) return cudaErrorInvalidValue;
  if (stream->recording == nullptr) loaded.insert(call.batch);
  if (loaded.count(call.batch) == 0) return cudaErrorStreamCaptureUnsupported;
  const std::vector<float*> a(reinterpret_cast<float* const*>(call.args),
                              reinterpret_cast<float* const*>(call.args) + args);
  fake::launch(stream, {{a.begin(), a.end()}, [a, batch = call.batch, run] { run(a, batch); }});
  return 0;
}
using Args = std::vector<float*>;

}  // namespace

extern "C" {
int vitc_k_scale_sm_80(const vitc::Call& call) {
  return kernel(1, call, 3, [](const Args& a, int64_t batch) {
    for (int64_t i = 0; i < batch * kImage; ++i) a[2][i] = a[0][i] * a[1][i / kPlane % 3];
  });
}
int vitc_k_shift_sm_80(const vitc::Call& call) {
  return kernel(2, call, 3, [](const Args& a, int64_t batch) {
    for (int64_t i = 0; i < batch * kImage; ++i) a[2][i] = a[0][i] + a[1][i / kPlane % 3];
  });
}
int vitc_k_total_sm_80(const vitc::Call& call) {
  return kernel(3, call, 2, [](const Args& a, int64_t batch) {
    for (int64_t row = 0; row < 3 * batch; ++row) a[1][row] = a[0][row * kPlane];
  });
}
uint64_t vitc_k_scale_scratch_sm_80(int) { return 64; }
uint64_t vitc_k_shift_scratch_sm_80(int) { return 0; }
uint64_t vitc_k_total_scratch_sm_80(int) { return 0; }
}

namespace {

using fake::Stream;

// Inputs and outputs of a run, in memory of the caller's.
class Images {
 public:
  explicit Images(float seed) {
    for (int64_t i = 0; i < kBatch * kImage; ++i) x_[i] = seed + static_cast<float>(i % 17);
  }
  ~Images() {
    for (float* block : {x_, y_, s_}) fake::release(block);
  }
  Images(const Images&) = delete;
  Images& operator=(const Images&) = delete;

  // The outputs are spoilt first, in the stream's order.
  vitc_status run(vitc_context* context, Stream* stream, int64_t batch) {
    float* y = y_;
    const auto spoil = [y] { std::memset(y, 0xff, kBatch * kImage * sizeof(float)); };
    fake::launch(stream, {{y}, spoil});
    return call(context, stream, batch);
  }
  vitc_status call(vitc_context* context, Stream* stream, int64_t batch) {
    const vitc_tensor in = {x_, VITC_FLOAT32, 4, {batch, 3, 5, 7}};
    const vitc_tensor out[2] = {{y_, VITC_FLOAT32, 4, {batch, 3, 5, 7}},
                                {s_, VITC_FLOAT32, 2, {batch, 3}}};
    return vitc_run(context, &in, 1, out, 2, stream);
  }
  void profile(vitc_context* context, Stream* stream) {
    const vitc_tensor in = {x_, VITC_FLOAT32, 4, {2, 3, 5, 7}};
    const vitc_tensor out[2] = {{y_, VITC_FLOAT32, 4, {2, 3, 5, 7}}, {s_, VITC_FLOAT32, 2, {2, 3}}};
    float times[3];
    CHECK(vitc_profile(context, &in, 1, out, 2, stream, 2, times, 3) == VITC_OK);
  }

  // Both weights are (v, v + 1, v + 2); nothing else may be queued on the outputs' streams.
  bool right(int64_t batch, float v) const {
    bool all = true;
    for (int64_t i = 0; i < batch * kImage; ++i) {
      const float w = v + static_cast<float>(i / kPlane % 3);
      all = all && y_[i] == x_[i] * w + w;
    }
    for (int64_t row = 0; row < 3 * batch; ++row) all = all && s_[row] == y_[row * kPlane];
    return all;
  }
  float first() const { return y_[0]; }

 private:
  static float* allocate(int64_t count) {
    return static_cast<float*>(fake::allocate(static_cast<size_t>(count) * sizeof(float)));
  }
  float *x_ = allocate(kBatch * kImage), *y_ = allocate(kBatch * kImage),
        *s_ = allocate(kBatch * 3);
};

void finish() {
  for (const auto& stream : fake::streams) fake::wait(fake::end_of(stream.get()));
}

void set_weights(vitc_model* model, float v) {
  const float values[3] = {v, v + 1, v + 2};
  const vitc_weight weights[] = {{"b", values, sizeof values}, {"w", values, sizeof values}};
  CHECK(vitc_model_set_weights(model, weights, 2) == VITC_OK);
}

struct Handles {
  vitc_model* model = nullptr;
  vitc_context* context = nullptr;
  explicit Handles(const char* path) {
    CHECK(vitc_model_create(0, path, &model) == VITC_OK);
    CHECK(vitc_context_create(model, 0, &context) == VITC_OK);
    set_weights(model, 1);
  }
  void close() {
    CHECK(vitc_model_destroy(model) == VITC_OK);
    CHECK(vitc_context_destroy(context) == VITC_OK);
  }
};

// Runs follow each other on several streams with more addresses than graphs are kept, and the
// library is closed while they are queued.
void closed_in_flight(const char* path) {
  Handles handles(path);
  std::vector<std::unique_ptr<Images>> images;
  std::vector<int64_t> batches(9);
  Stream* const streams[] = {fake::from(nullptr), fake::make_stream(), fake::make_stream()};
  for (int i = 0; i < 9; ++i) images.push_back(std::make_unique<Images>(static_cast<float>(i)));
  for (int round = 0; round < 100; ++round) {
    const size_t i = fake::random() % 9;
    batches[i] = 1 + static_cast<int64_t>(fake::random() % kBatch);
    CHECK(images[i]->run(handles.context, streams[i % 3], batches[i]) == VITC_OK);
  }
  handles.close();
  finish();
  for (size_t i = 0; i < 9; ++i) CHECK(images[i]->right(batches[i], 1));
}

// Each run has the weights of when it was called, however late it runs.
void weights_in_flight(const char* path) {
  Handles handles(path);
  vitc_context* other = nullptr;
  CHECK(vitc_context_create(handles.model, 0, &other) == VITC_OK);
  std::vector<std::unique_ptr<Images>> images;
  Stream* const streams[] = {fake::make_stream(), fake::make_stream()};
  for (int i = 0; i < 40; ++i) {
    if (i % 5 == 0) set_weights(handles.model, static_cast<float>(1 + i));
    images.push_back(std::make_unique<Images>(static_cast<float>(i)));
    vitc_context* context = i % 3 == 0 ? other : handles.context;
    CHECK(images.back()->run(context, streams[fake::random() % 2], kBatch) == VITC_OK);
  }
  CHECK(vitc_context_destroy(other) == VITC_OK);
  Images same(3);
  for (float v = 50; v < 53; ++v) {
    set_weights(handles.model, v);
    for (int i = 0; i < 3; ++i) {
      CHECK(same.run(handles.context, streams[0], kBatch) == VITC_OK);
    }
    fake::wait(fake::end_of(streams[0]));
    CHECK(same.right(kBatch, v));
  }
  handles.close();
  finish();
  for (int i = 0; i < 40; ++i) CHECK(images[i]->right(kBatch, static_cast<float>(1 + i / 5 * 5)));
}

// The caller's graph keeps what it was recorded with.
void recorded(const char* path) {
  Handles handles(path);
  Images images(3);
  Stream* stream = fake::make_stream();
  CHECK(images.call(handles.context, stream, kBatch) == VITC_OK);
  stream->recording = std::make_unique<fake::Graph>();
  CHECK(images.call(handles.context, stream, kBatch) == VITC_OK);
  fake::Executable graph{*stream->recording, {}};
  stream->recording.reset();
  fake::run_graph(graph, stream);
  finish();
  CHECK(images.right(kBatch, 1));
  set_weights(handles.model, 7);
  CHECK(images.run(handles.context, stream, kBatch) == VITC_OK);
  finish();
  CHECK(images.right(kBatch, 7));
  fake::run_graph(graph, stream);
  finish();
  CHECK(images.right(kBatch, 1));
  handles.close();
}

// What reads memory waits for what is queued; a launch that fails spoils nothing, wherever in the
// run, and a context may be destroyed behind it.
void reads_and_failures(const char* path) {
  Handles handles(path);
  Images images(5);
  std::vector<std::unique_ptr<Images>> others;
  Stream* const streams[] = {fake::make_stream(), fake::make_stream()};
  for (int round = 0; round < 12; ++round) {
    failing = round % 2 == 0 ? 3 - round / 2 % 3 : 0;
    others.push_back(std::make_unique<Images>(6));
    const vitc_status status = others.back()->run(handles.context, streams[1], 3);
    CHECK(status == (failing != 0 ? VITC_DEVICE_ERROR : VITC_OK));
    CHECK(images.run(handles.context, streams[round % 2], 2) == VITC_OK);
    float h = 0;
    CHECK(vitc_read(handles.context, 0, &h, sizeof h) == VITC_OK);
    CHECK(h == 5);
    CHECK(images.right(2, 1));
    images.profile(handles.context, streams[0]);
    CHECK(images.right(2, 1));
  }
  failing = 3;
  CHECK(images.run(handles.context, streams[0], 3) == VITC_DEVICE_ERROR);
  failing = 0;
  handles.close();
  finish();
  for (size_t i = 1; i < others.size(); i += 2) CHECK(others[i]->right(3, 1));
}

// A context each; the weights change under them.
void threads(const char* path) {
  Handles handles(path);
  std::vector<std::thread> all;
  for (int t = 0; t < 4; ++t) {
    all.emplace_back([&, t] {
      vitc_context* context = nullptr;
      CHECK(vitc_context_create(handles.model, 0, &context) == VITC_OK);
      Stream* stream = fake::make_stream();
      std::vector<std::unique_ptr<Images>> images;
      for (int i = 0; i < 25; ++i) {
        images.push_back(std::make_unique<Images>(static_cast<float>(t)));
        CHECK(images.back()->run(context, stream, 1 + i % kBatch) == VITC_OK);
      }
      CHECK(vitc_context_destroy(context) == VITC_OK);
      fake::wait(fake::end_of(stream));
      for (int i = 0; i < 25; ++i) {
        const float v = (images[i]->first() / static_cast<float>(t + 1));
        CHECK(images[i]->right(1 + i % kBatch, v));
      }
    });
  }
  for (int i = 0; i < 50; ++i) set_weights(handles.model, static_cast<float>(1 + i % 3));
  for (std::thread& thread : all) thread.join();
  handles.close();
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 3);
  fake::random.seed(static_cast<unsigned>(std::atoi(argv[2])));
  reads_and_failures(argv[1]);
  closed_in_flight(argv[1]);
  weights_in_flight(argv[1]);
  recorded(argv[1]);
  threads(argv[1]);
  std::puts("passed");
}
