// Calls the C ABI of the toy from several threads, and with every argument wrong, in one program
// that can be built with a sanitizer. Usage: stress WEIGHTS.safetensors
#include <vitc/vitc.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, vitc_last_error()); \
      std::exit(1);                                                                       \
    }                                                                                     \
  } while (0)

// The call fails with this status, and the message holds this text.
#define REFUSED(call, status, text)                         \
  do {                                                      \
    CHECK((call) == (status));                              \
    CHECK(std::strstr(vitc_last_error(), text) != nullptr); \
  } while (0)

namespace {

constexpr int64_t kImage = 105;

struct Images {
  std::vector<float> x, y, s;
  vitc_tensor in;
  vitc_tensor out[2];

  explicit Images(int64_t batch) : x(batch * kImage), y(batch * kImage), s(batch * 3) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17);
    in = {x.data(), VITC_FLOAT32, 4, {batch, 3, 5, 7}};
    out[0] = {y.data(), VITC_FLOAT32, 4, {batch, 3, 5, 7}};
    out[1] = {s.data(), VITC_FLOAT32, 2, {batch, 3}};
  }

  // One of the weight sets (v, v + 1, v + 2), v = 1, 2, 3, for both w and b.
  bool consistent() const {
    for (float v = 1; v <= 3; ++v) {
      bool all = true;
      for (size_t i = 0; i < y.size(); ++i) {
        const float w = v + static_cast<float>(i / 35 % 3);
        all = all && y[i] == x[i] * w + w;
      }
      if (all) return true;
    }
    return false;
  }
};

void set_weights(vitc_model* model, float v) {
  const float values[3] = {v, v + 1, v + 2};
  const vitc_weight weights[] = {{"b", values, sizeof values}, {"w", values, sizeof values}};
  CHECK(vitc_model_set_weights(model, weights, 2) == VITC_OK);
}

void threads(vitc_model* model) {
  set_weights(model, 1);
  std::atomic<int> running{4};
  std::vector<std::thread> all;
  for (int t = 0; t < 4; ++t) {
    all.emplace_back([&, t] {
      vitc_context* context = nullptr;
      CHECK(vitc_context_create(model, 1 + t % 2, &context) == VITC_OK);
      for (int i = 0; i < 200; ++i) {
        Images images(1 + i % 4);
        CHECK(vitc_run(context, &images.in, 1, images.out, 2, nullptr) == VITC_OK);
        CHECK(images.consistent());
        // Each thread reads its own last error.
        images.in.shape[0] = 10 + t;
        const std::string text = "(batch) is " + std::to_string(10 + t);
        REFUSED(vitc_run(context, &images.in, 1, images.out, 2, nullptr), VITC_INVALID_ARGUMENT,
                text.c_str());
      }
      CHECK(vitc_context_destroy(context) == VITC_OK);
      --running;
    });
  }
  for (int i = 0; running > 0; ++i) set_weights(model, static_cast<float>(1 + i % 3));
  for (std::thread& thread : all) thread.join();
}

void one_context_in_two_threads(vitc_model* model) {
  vitc_context* context = nullptr;
  CHECK(vitc_context_create(model, 1, &context) == VITC_OK);
  std::atomic<bool> refused{false};
  auto work = [&] {
    Images images(1);
    images.x[0] = -1000;  // the kernel sleeps
    for (int i = 0; i < 50 && !refused; ++i) {
      const vitc_status status = vitc_run(context, &images.in, 1, images.out, 2, nullptr);
      if (status == VITC_OK) continue;
      CHECK(status == VITC_INVALID_ARGUMENT);
      CHECK(std::strstr(vitc_last_error(), "in use by another thread") != nullptr);
      refused = true;
    }
  };
  std::thread first(work), second(work);
  first.join();
  second.join();
  CHECK(refused);
  CHECK(vitc_context_destroy(context) == VITC_OK);
}

void wrong_arguments(vitc_model* model, const char* path) {
  constexpr vitc_status bad = VITC_INVALID_ARGUMENT;
  vitc_model* other = nullptr;
  REFUSED(vitc_model_create(0, path, nullptr), bad, "model is NULL");
  REFUSED(vitc_model_create(1, path, &other), VITC_UNSUPPORTED_DEVICE, "device 1");
  REFUSED(vitc_model_create(0, "/nowhere", &other), VITC_BAD_WEIGHTS, "cannot open '/nowhere'");
  REFUSED(vitc_model_create(0, "/", &other), VITC_BAD_WEIGHTS, "not a regular file");
  REFUSED(vitc_model_create(0, nullptr, &other), VITC_BAD_WEIGHTS, "footer");  // a program has none
  CHECK(other == nullptr);
  CHECK(vitc_model_destroy(nullptr) == VITC_OK);
  CHECK(vitc_context_destroy(nullptr) == VITC_OK);

  const float values[3] = {};
  const vitc_weight nameless = {nullptr, values, 12}, empty = {"w", nullptr, 12};
  REFUSED(vitc_model_set_weights(nullptr, &empty, 1), bad, "model is NULL");
  REFUSED(vitc_model_set_weights(model, nullptr, 1), bad, "weights is NULL");
  REFUSED(vitc_model_set_weights(model, &empty, -1), bad, "count is -1");
  REFUSED(vitc_model_set_weights(model, &empty, 1), bad, "weight 0 is NULL");
  REFUSED(vitc_model_set_weights(model, &nameless, 1), bad, "weight 0 is NULL");
  CHECK(vitc_model_set_weights(model, nullptr, 0) == VITC_OK);

  const char* name = nullptr;
  vitc_tensor info;
  REFUSED(vitc_input_info(0, &name, nullptr), bad, "info is NULL");
  REFUSED(vitc_input_info(-1, &name, &info), bad, "index -1: the library has 1");
  REFUSED(vitc_output_info(2, &name, &info), bad, "index 2: the library has 2");
  CHECK(vitc_output_info(1, nullptr, &info) == VITC_OK && info.data == nullptr);
  CHECK(info.rank == 2 && info.shape[0] == 4 && info.shape[1] == 3);

  vitc_context* context = nullptr;
  REFUSED(vitc_context_create(nullptr, 1, &context), bad, "model is NULL");
  REFUSED(vitc_context_create(model, 1, nullptr), bad, "context is NULL");
  REFUSED(vitc_context_create(model, -1, &context), bad, "threads is -1");
  REFUSED(vitc_context_create(model, 4097, &context), bad, "threads is 4097");
  CHECK(vitc_context_create(model, 0, &context) == VITC_OK);

  Images good(2);
  const auto run = [&](const Images& images) {
    return vitc_run(context, &images.in, 1, images.out, 2, nullptr);
  };
  REFUSED(vitc_run(nullptr, &good.in, 1, good.out, 2, nullptr), bad, "context is NULL");
  REFUSED(vitc_run(context, nullptr, 1, good.out, 2, nullptr), bad, "array of inputs is NULL");
  REFUSED(vitc_run(context, &good.in, 1, nullptr, 2, nullptr), bad, "array of outputs is NULL");
  REFUSED(vitc_run(context, &good.in, 0, good.out, 2, nullptr), bad, "0 inputs given");
  REFUSED(vitc_run(context, &good.in, -1, good.out, 2, nullptr), bad, "-1 inputs given");
  REFUSED(vitc_run(context, &good.in, 1, good.out, 1, nullptr), bad, "1 output given");
  Images wrong = good;
  wrong.in.data = nullptr;
  REFUSED(run(wrong), bad, "data of input 'x' is NULL");
  wrong = good;
  wrong.out[1].data = nullptr;
  REFUSED(run(wrong), bad, "data of output 's' is NULL");
  wrong = good;
  wrong.in.dtype = VITC_FLOAT16;
  REFUSED(run(wrong), bad, "input 'x' is float16, the library was compiled for float32");
  wrong = good;
  const int32_t code = 77;
  std::memcpy(&wrong.in.dtype, &code, sizeof code);
  REFUSED(run(wrong), bad, "input 'x' is an unknown dtype");
  for (const int32_t rank : {0, 3, 9, -1, 1 << 30}) {
    wrong = good;
    wrong.in.rank = rank;
    REFUSED(run(wrong), bad, "the library was compiled for rank 4");
  }
  for (const int64_t size : {int64_t{0}, int64_t{-1}, int64_t{5}, INT64_MAX, INT64_MIN}) {
    wrong = good;
    wrong.in.shape[0] = size;
    REFUSED(run(wrong), bad, "(batch)");
    wrong = good;
    wrong.in.shape[3] = size;
    REFUSED(run(wrong), bad, "(width)");
  }
  wrong = good;
  wrong.out[0].shape[0] = 1;
  REFUSED(run(wrong), bad, "output 'y' has batch 1, 'x' has 2");
  wrong = good;
  wrong.out[0].data = static_cast<float*>(wrong.in.data) + 1;
  REFUSED(run(wrong), bad, "output 'y' overlaps input 'x'");

  float times[3];
  const auto profile = [&](int32_t repeats, float* to, int32_t count) {
    return vitc_profile(context, &good.in, 1, good.out, 2, nullptr, repeats, to, count);
  };
  REFUSED(profile(0, times, 3), bad, "repeats is 0");
  REFUSED(profile(1, nullptr, 3), bad, "microseconds is NULL");
  REFUSED(profile(1, times, 2), bad, "step_count is 2, the library has 3");
  CHECK(profile(3, times, 3) == VITC_OK);
  REFUSED(vitc_read(context, 0, nullptr, 4), bad, "host is NULL");
  REFUSED(vitc_read(context, UINT64_MAX, times, 4), bad, "not in the workspace");
  CHECK(run(good) == VITC_OK);

  // A context outlives its model's handle.
  CHECK(vitc_model_destroy(model) == VITC_OK);
  CHECK(run(good) == VITC_OK);
  CHECK(vitc_context_destroy(context) == VITC_OK);
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(argc == 2);
  CHECK(std::strcmp(vitc_last_error(), "") == 0);
  vitc_model* model = nullptr;
  CHECK(vitc_model_create(0, argv[1], &model) == VITC_OK);
  threads(model);
  one_context_in_two_threads(model);
  wrong_arguments(model, argv[1]);
  std::puts("passed");
  return 0;
}
