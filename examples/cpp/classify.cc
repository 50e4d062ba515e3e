// Runs a compiled vision transformer from C++, with neither Python nor libtorch.
//
//   classify LIBRARY.so [IMAGES.f32] [--batch N] [--threads N] [--repeats N] [--weights FILE]
//
// IMAGES.f32 holds N images as raw little-endian float32, in the input's shape and already
// normalised (numpy: array.tofile). Without it the images are random. Prints each image's five
// largest outputs and the median latency.
#include <dlfcn.h>
#include <vitc/vitc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Options {
  std::string library;
  std::string images;
  std::string weights;
  int64_t batch = 1;
  int32_t threads = 0;  // 0: all that this process may use
  int repeats = 10;
};

int64_t positive(const std::string& text) {
  size_t used = 0;
  const long long value = std::stoll(text, &used);
  if (used != text.size() || value < 1) throw std::runtime_error("'" + text + "' is no count");
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  std::vector<std::string> positional;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool known =
        word == "--batch" || word == "--threads" || word == "--repeats" || word == "--weights";
    if (!known && word.rfind("--", 0) == 0) throw std::runtime_error("unknown option " + word);
    if (!known) {
      positional.push_back(word);
      continue;
    }
    if (++i == argc) throw std::runtime_error(word + " needs a value");
    if (word == "--batch") options.batch = positive(argv[i]);
    if (word == "--threads") options.threads = static_cast<int32_t>(positive(argv[i]));
    if (word == "--repeats") options.repeats = static_cast<int>(positive(argv[i]));
    if (word == "--weights") options.weights = argv[i];
  }
  if (positional.empty() || positional.size() > 2) {
    throw std::runtime_error(
        "usage: classify LIBRARY.so [IMAGES.f32] [--batch N] [--threads N] [--repeats N] "
        "[--weights FILE]");
  }
  options.library = positional[0];
  if (positional.size() == 2) options.images = positional[1];
  return options;
}

// The functions of the library that this program calls.
class Library {
 public:
  explicit Library(const std::string& path) : handle_(open(path)) {
    if (abi_version() != VITC_ABI_VERSION) {
      throw std::runtime_error("the library has ABI version " + std::to_string(abi_version()) +
                               ", this program was built for " + std::to_string(VITC_ABI_VERSION));
    }
  }

  void check(vitc_status status) const {
    if (status != VITC_OK) throw std::runtime_error(last_error());
  }

 private:
  static void* open(const std::string& path) {
    // Without a slash dlopen would search the system's folders.
    const std::string name = path.find('/') == std::string::npos ? "./" + path : path;
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    return handle;
  }

  template <class Function>
  Function find(const char* name) const {
    void* symbol = dlsym(handle_, name);
    if (symbol == nullptr) throw std::runtime_error(std::string("the library lacks ") + name);
    return reinterpret_cast<Function>(symbol);
  }

  void* handle_;

 public:
#define VITC_FUNCTION(name) \
  decltype(&vitc_##name) name = find<decltype(&vitc_##name)>("vitc_" #name)
  VITC_FUNCTION(abi_version);
  VITC_FUNCTION(last_error);
  VITC_FUNCTION(input_count);
  VITC_FUNCTION(output_count);
  VITC_FUNCTION(input_info);
  VITC_FUNCTION(output_info);
  VITC_FUNCTION(model_create);
  VITC_FUNCTION(model_destroy);
  VITC_FUNCTION(context_create);
  VITC_FUNCTION(context_destroy);
  VITC_FUNCTION(run);
#undef VITC_FUNCTION
};

int64_t elements(const vitc_tensor& tensor) {
  return std::accumulate(tensor.shape, tensor.shape + tensor.rank, int64_t{1},
                         std::multiplies<int64_t>());
}

// A tensor of the library with memory of its own.
struct Tensor {
  std::string name;
  vitc_tensor view;
  std::vector<float> data;

  Tensor(const char* port, vitc_tensor info, int64_t batch) : name(port), view(info) {
    if (view.dtype != VITC_FLOAT32) {
      throw std::runtime_error("'" + name + "' is not float32, which is all this example knows");
    }
    view.shape[0] = batch;
    data.resize(static_cast<size_t>(elements(view)));
    view.data = data.data();
  }
};

void fill(Tensor& input, const std::string& path) {
  if (path.empty()) {
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    for (float& value : input.data) value = normal(generator);
    return;
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot open " + path);
  const auto bytes = static_cast<int64_t>(file.tellg());
  const auto wanted = static_cast<int64_t>(input.data.size() * sizeof(float));
  if (bytes != wanted) {
    throw std::runtime_error(path + " has " + std::to_string(bytes) + " bytes, '" + input.name +
                             "' at this batch takes " + std::to_string(wanted));
  }
  file.seekg(0);
  file.read(reinterpret_cast<char*>(input.data.data()), wanted);
}

void print_top5(const Tensor& output) {
  const int64_t batch = output.view.shape[0];
  const int64_t classes = static_cast<int64_t>(output.data.size()) / batch;
  const int64_t shown = std::min<int64_t>(5, classes);
  std::vector<int64_t> order(static_cast<size_t>(classes));
  for (int64_t image = 0; image < batch; ++image) {
    const float* scores = output.data.data() + image * classes;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                      [scores](int64_t a, int64_t b) { return scores[a] > scores[b]; });
    std::printf("image %lld, %s:", static_cast<long long>(image), output.name.c_str());
    for (int64_t i = 0; i < shown; ++i) {
      std::printf("  %lld (%.4f)", static_cast<long long>(order[i]), scores[order[i]]);
    }
    std::printf("\n");
  }
}

void run(const Options& options) {
  const Library library(options.library);

  std::vector<Tensor> inputs, outputs;
  const char* name = nullptr;
  vitc_tensor info;
  for (int32_t i = 0; i < library.input_count(); ++i) {
    library.check(library.input_info(i, &name, &info));
    inputs.emplace_back(name, info, options.batch);
  }
  for (int32_t i = 0; i < library.output_count(); ++i) {
    library.check(library.output_info(i, &name, &info));
    outputs.emplace_back(name, info, options.batch);
  }
  std::vector<vitc_tensor> in, out;
  for (Tensor& input : inputs) {
    fill(input, options.images);
    in.push_back(input.view);
  }
  for (const Tensor& output : outputs) out.push_back(output.view);

  vitc_model* model = nullptr;
  const char* weights = options.weights.empty() ? nullptr : options.weights.c_str();
  library.check(library.model_create(0, weights, &model));
  vitc_context* context = nullptr;
  library.check(library.context_create(model, options.threads, &context));

  std::vector<double> milliseconds;
  for (int i = 0; i < options.repeats + 1; ++i) {  // the first run warms up
    const auto start = std::chrono::steady_clock::now();
    library.check(library.run(context, in.data(), static_cast<int32_t>(in.size()), out.data(),
                              static_cast<int32_t>(out.size()), nullptr));
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    if (i > 0) milliseconds.push_back(time.count());
  }
  const auto middle = milliseconds.begin() + static_cast<long>(milliseconds.size() / 2);
  std::nth_element(milliseconds.begin(), middle, milliseconds.end());

  for (const Tensor& output : outputs) print_top5(output);
  std::printf("batch %lld: %.3f ms, %.1f images/s (median of %zu runs)\n",
              static_cast<long long>(options.batch), *middle,
              1000.0 * static_cast<double>(options.batch) / *middle, milliseconds.size());

  library.check(library.context_destroy(context));
  library.check(library.model_destroy(model));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(parse(argc, argv));
    return EXIT_SUCCESS;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return EXIT_FAILURE;
  }
}
