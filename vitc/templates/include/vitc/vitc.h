/* The C interface of a compiled vision transformer.
 *
 * A library built by vitc exports exactly the functions below. Link against it, or dlopen it and
 * look them up: examples/cpp shows the second. No function throws, aborts or exits; each returns a
 * status, and vitc_last_error() says in words what went wrong.
 *
 * A model (weights, device) may be shared by threads. A context (workspace, threads or stream)
 * belongs to one thread at a time; a call on a context that is busy is refused.
 */
#ifndef VITC_VITC_H_
#define VITC_VITC_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VITC_API __attribute__((visibility("default")))

/* Compare with vitc_abi_version() before any other call. It changes whenever a caller would have
 * to. */
#define VITC_ABI_VERSION 1
#define VITC_MAX_RANK 8

typedef enum vitc_status {
  VITC_OK = 0,
  VITC_INVALID_ARGUMENT = 1,   /* the caller's mistake; the message names the argument */
  VITC_OUT_OF_MEMORY = 2,      /* host or device */
  VITC_BAD_WEIGHTS = 3,        /* weights missing, truncated, or of another model */
  VITC_UNSUPPORTED_DEVICE = 4, /* this machine cannot run the library's code */
  VITC_DEVICE_ERROR = 5,       /* the device or its driver reported an error */
  VITC_INTERNAL = 6            /* a defect of vitc */
} vitc_status;

typedef enum vitc_dtype {
  VITC_FLOAT32 = 0,
  VITC_FLOAT16 = 1,
  VITC_BFLOAT16 = 2,
  VITC_INT8 = 3,
  VITC_FLOAT8_E4M3 = 4,
  VITC_UINT8 = 5,
  VITC_INT32 = 6,
  VITC_INT64 = 7
} vitc_dtype;

/* A dense row-major array on the model's device. shape[0] is the batch, 1 to the library's maximum.
 * On a CPU, data may have any alignment. */
typedef struct vitc_tensor {
  void* data;
  vitc_dtype dtype;
  int32_t rank;
  int64_t shape[VITC_MAX_RANK];
} vitc_tensor;

/* One constant in its final form (folded, cast, packed), in host memory. The manifest lists names,
 * dtypes and shapes under "weights". */
typedef struct vitc_weight {
  const char* name;
  const void* data;
  uint64_t bytes;
} vitc_weight;

typedef struct vitc_model vitc_model;
typedef struct vitc_context vitc_context;

/* VITC_ABI_VERSION the library was built with. */
VITC_API int32_t vitc_abi_version(void);

/* What went wrong in the calling thread's last failed call; "" when none has failed. The text stays
 * valid until the thread's next failing call. A successful call leaves it alone. */
VITC_API const char* vitc_last_error(void);

/* JSON, UTF-8: what the model is and how it was compiled (docs/architecture.md lists the keys). */
VITC_API const char* vitc_manifest(void);

VITC_API int32_t vitc_input_count(void);
VITC_API int32_t vitc_output_count(void);

/* Name, dtype, rank and shape of an input or output; data is set to NULL, shape[0] is the maximum
 * batch. name may be NULL. */
VITC_API vitc_status vitc_input_info(int32_t index, const char** name, vitc_tensor* info);
VITC_API vitc_status vitc_output_info(int32_t index, const char** name, vitc_tensor* info);

/* Finds the weights and checks that this machine can run the code. device: index of the GPU; 0 on a
 * CPU. weights_path: a .safetensors file with this library's constants; NULL means those embedded
 * in the library, or else `<stem>.safetensors` beside it, which must end with the checksum that the
 * library knows. The weights are mapped read-only: two models of one file share memory. The
 * environment variable VITC_ISA=avx2|avx512 picks the CPU code by hand. */
VITC_API vitc_status vitc_model_create(int32_t device, const char* weights_path,
                                       vitc_model** model);

/* NULL is ignored. Contexts that are still alive keep what they need. */
VITC_API vitc_status vitc_model_destroy(vitc_model* model);

/* Replaces the named constants by copies of the given ones; the others stay. All or nothing: on
 * failure the model is as before. A run in progress ends with the weights it began with; every
 * later run of every context sees the new ones. */
VITC_API vitc_status vitc_model_set_weights(vitc_model* model, const vitc_weight* weights,
                                            int32_t count);

/* Allocates the workspace. threads: CPU threads to run on, 0 = all that this process may use;
 * ignored on a GPU. */
VITC_API vitc_status vitc_context_create(vitc_model* model, int32_t threads,
                                         vitc_context** context);

/* NULL is ignored. Not while a call on the context is running. */
VITC_API vitc_status vitc_context_destroy(vitc_context* context);

/* Runs the model. Inputs and outputs come in the order of vitc_input_info and vitc_output_info and
 * all have the same batch; outputs overlap neither inputs nor each other. stream: a cudaStream_t or
 * hipStream_t, NULL for the default one; ignored on a CPU, where the call returns when the outputs
 * are written. A stream that is being captured records the run; its replays use the context's
 * workspace and the weights of the capture, and no call on the context waits for them: the caller
 * does, before vitc_read and vitc_context_destroy too. On a GPU a run that fails may have queued
 * some of its kernels: the tensors are in use until the stream is done, as after any run. */
VITC_API vitc_status vitc_run(vitc_context* context, const vitc_tensor* inputs, int32_t input_count,
                              const vitc_tensor* outputs, int32_t output_count, void* stream);

/* Runs only the steps [first, last) of the manifest's "steps", on the workspace as earlier calls
 * left it: running [0,1), [1,2) ... equals one vitc_run, and vitc_read in between shows each
 * result. */
VITC_API vitc_status vitc_run_steps(vitc_context* context, const vitc_tensor* inputs,
                                    int32_t input_count, const vitc_tensor* outputs,
                                    int32_t output_count, void* stream, int32_t first,
                                    int32_t last);

/* Copies workspace bytes [offset, offset + bytes) to host memory, after waiting for the runs. */
VITC_API vitc_status vitc_read(vitc_context* context, uint64_t offset, void* host, uint64_t bytes);

/* Runs the model `repeats` times and writes each step's median time. step_count must be the number
 * of the manifest's "steps". */
VITC_API vitc_status vitc_profile(vitc_context* context, const vitc_tensor* inputs,
                                  int32_t input_count, const vitc_tensor* outputs,
                                  int32_t output_count, void* stream, int32_t repeats,
                                  float* microseconds, int32_t step_count);

#ifdef __cplusplus
}
#endif

#endif /* VITC_VITC_H_ */
