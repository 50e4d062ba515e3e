// CUDA's runtime on the CPU, to test who waits for whom. Include it in one file of a program.
//
// Queued work runs only while somebody waits, one piece of it at a time, of any stream whose turn
// CUDA's rules allow: as late and as mixed as a GPU might do it. Memory that is freed although
// queued work uses it, work on freed memory, and calls without a context end the program.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace fake {

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(1);
}

struct Work {
  std::vector<const void*> uses;
  std::function<void()> run;
};

struct Stream;
struct Point {  // the end of the first `number` pieces of work of a stream
  Stream* stream = nullptr;
  uint64_t number = 0;
  bool passed() const;
};
struct Queued {
  Work work;
  Point after;
};
struct Graph {
  std::vector<Work> works;
};
struct Executable {
  Graph graph;
  Point launched;
};
struct Stream {
  uint64_t id = 0, queued = 0, done = 0;
  std::deque<Queued> queue;
  std::unique_ptr<Graph> recording;
};
inline bool Point::passed() const { return stream == nullptr || stream->done >= number; }

inline std::recursive_mutex mutex;
inline std::mt19937 random;
inline std::vector<std::unique_ptr<Stream>> streams;  // for ever: events point to them
inline std::map<uintptr_t, size_t> blocks;
inline thread_local CUcontext current = nullptr;
inline int primary;  // its address is the context

// A call of the library's: with a context, as each of them needs one.
struct Call {
  Call() {
    if (current == nullptr) die("a call without a context");
  }
  const std::lock_guard<std::recursive_mutex> lock{mutex};
};

inline Stream* make_stream() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  streams.push_back(std::make_unique<Stream>());
  streams.back()->id = streams.size();
  return streams.back().get();
}
inline Stream* from(cudaStream_t stream) {
  static Stream* const standard = make_stream();
  return stream == nullptr ? standard : reinterpret_cast<Stream*>(stream);
}

inline bool alive(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto block = blocks.upper_bound(at);
  return block != blocks.begin() && at < std::prev(block)->first + std::prev(block)->second;
}
inline void* allocate(size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xff, bytes);
  blocks[reinterpret_cast<uintptr_t>(memory)] = bytes;
  return memory;
}
inline void release(void* memory) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const auto begin = reinterpret_cast<uintptr_t>(memory), end = begin + blocks.at(begin);
  for (const auto& stream : streams) {
    for (const Queued& queued : stream->queue) {
      for (const void* used : queued.work.uses) {
        const auto at = reinterpret_cast<uintptr_t>(used);
        if (begin <= at && at < end) die("memory is freed that queued work uses");
      }
    }
  }
  blocks.erase(begin);
  std::free(memory);
}

inline Point end_of(Stream* stream) { return {stream, stream->queued}; }
inline void push(Stream* stream, Work work, Point after = {}) {
  stream->queue.push_back({std::move(work), after});
  ++stream->queued;
}
inline void launch(Stream* stream, Work work) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (stream->recording != nullptr) return stream->recording->works.push_back(std::move(work));
  push(stream, std::move(work));
}
inline void run_graph(Executable& executable, Stream* stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  push(stream, {}, executable.launched);  // a graph does not overlap itself
  for (const Work& work : executable.graph.works) push(stream, work);
  executable.launched = end_of(stream);
}

inline void step() {
  std::vector<Stream*> ready;
  for (const auto& stream : streams) {
    if (!stream->queue.empty() && stream->queue.front().after.passed()) {
      ready.push_back(stream.get());
    }
  }
  if (ready.empty()) die("all streams wait for each other");
  Stream* stream = ready[random() % ready.size()];
  const Queued next = std::move(stream->queue.front());
  stream->queue.pop_front();
  for (const void* used : next.work.uses) {
    if (!alive(used)) die("work uses memory that is not allocated");
  }
  if (next.work.run) next.work.run();
  ++stream->done;
}
inline void wait(Point point) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  while (!point.passed()) step();
}

inline CUresult get_current(CUcontext* context) { return *context = current, CUDA_SUCCESS; }
inline CUresult push_current(CUcontext context) { return current = context, CUDA_SUCCESS; }
inline CUresult pop_current(CUcontext* context) {
  *context = current;
  current = nullptr;
  return CUDA_SUCCESS;
}
inline CUresult retain(CUcontext* context, CUdevice) {
  *context = reinterpret_cast<CUcontext>(&primary);
  return CUDA_SUCCESS;
}
inline CUresult exchange(CUstreamCaptureMode* mode) {
  static thread_local CUstreamCaptureMode now = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::swap(now, *mode);
  return CUDA_SUCCESS;
}

template <class To, class From>
To handle(From* pointer) {
  return reinterpret_cast<To>(pointer);
}

}  // namespace fake

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long, cudaDriverEntryPointQueryResult*) {
  const std::map<std::string, void*> known = {
      {"cuCtxGetCurrent", reinterpret_cast<void*>(fake::get_current)},
      {"cuCtxPushCurrent", reinterpret_cast<void*>(fake::push_current)},
      {"cuCtxPopCurrent", reinterpret_cast<void*>(fake::pop_current)},
      {"cuDevicePrimaryCtxRetain", reinterpret_cast<void*>(fake::retain)},
      {"cuThreadExchangeStreamCaptureMode", reinterpret_cast<void*>(fake::exchange)}};
  *function = known.at(symbol);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::strcpy(properties->name, "fake");
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "text"; }
const char* cudaGetErrorName(cudaError_t) { return "name"; }

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const fake::Call call;
  *memory = fake::allocate(bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  const fake::Call call;
  fake::release(memory);  // "may perform implicit synchronization" promises nothing
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = 0, cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const fake::Call call;
  const void* used = kind == cudaMemcpyHostToDevice ? to : from;
  fake::push(fake::from(stream), {{used}, [=] { std::memcpy(to, from, bytes); }});
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const std::lock_guard<std::recursive_mutex> lock(fake::mutex);
  attributes->type = fake::alive(address) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->device = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const fake::Call call;
  *stream = fake::handle<cudaStream_t>(fake::make_stream());
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }  // its work goes on
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  return *id = fake::from(stream)->id, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const fake::Call call;
  fake::wait(fake::end_of(fake::from(stream)));
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  const fake::Call call;
  fake::push(fake::from(stream), {{}, [=] { function(data); }});
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const fake::Call call;
  *event = fake::handle<cudaEvent_t>(new fake::Point);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete fake::handle<fake::Point*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const fake::Call call;
  *fake::handle<fake::Point*>(event) = fake::end_of(fake::from(stream));
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const fake::Call call;
  fake::wait(*fake::handle<fake::Point*>(event));
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const fake::Call call;
  fake::push(fake::from(stream), {}, *fake::handle<fake::Point*>(event));
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 1, cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const fake::Call call;
  const bool recording = fake::from(stream)->recording != nullptr;
  *status = recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const fake::Call call;
  fake::from(stream)->recording = std::make_unique<fake::Graph>();
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const fake::Call call;
  *graph = fake::handle<cudaGraph_t>(fake::from(stream)->recording.release());
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete fake::handle<fake::Graph*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  const fake::Call call;
  *executable =
      fake::handle<cudaGraphExec_t>(new fake::Executable{*fake::handle<fake::Graph*>(graph), {}});
  return cudaSuccess;
}
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t executable, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo*) {
  const fake::Call call;
  if (fake::random() % 4 == 0) return cudaErrorGraphExecUpdateFailure;  // CUDA may always refuse
  fake::handle<fake::Executable*>(executable)->graph = *fake::handle<fake::Graph*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const fake::Call call;
  fake::run_graph(*fake::handle<fake::Executable*>(executable), fake::from(stream));
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {  // launches go on
  delete fake::handle<fake::Executable*>(executable);
  return cudaSuccess;
}

}  // extern "C"
