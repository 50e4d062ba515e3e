// toy: the tables that vitc/host.h interprets. Rendered by vitc from model.cc.jinja.
#include "vitc/host/device_cpu.h"
#include "vitc/host/table.h"

extern "C" {
int vitc_k_scale_avx2(const vitc::Call&);
uint64_t vitc_k_scale_scratch_avx2(int);
int vitc_k_scale_avx512(const vitc::Call&);
uint64_t vitc_k_scale_scratch_avx512(int);
int vitc_k_shift_avx2(const vitc::Call&);
uint64_t vitc_k_shift_scratch_avx2(int);
int vitc_k_total_avx2(const vitc::Call&);
uint64_t vitc_k_total_scratch_avx2(int);
int vitc_k_total_avx512(const vitc::Call&);
uint64_t vitc_k_total_scratch_avx512(int);
}

namespace vitc::host {

using Device = CpuDevice;

const char* const kIsas[] = {"avx2", "avx512"};

const Port kInputs[] = {
    {"x", VITC_FLOAT32, 4, {4, 3, 5, 7},
     {"batch", "channels", "height", "width"}},
};

const Port kOutputs[] = {
    {"y", VITC_FLOAT32, 4, {4, 3, 5, 7},
     {"batch", "channels", "height", "width"}},
    {"s", VITC_FLOAT32, 2, {4, 3},
     {"batch", "features"}},
};

const Weight kWeights[] = {
    {"w", 0, 12},
    {"b", 128, 12},
};

// One entry per instruction set; a kernel without code for one uses that of the set before.
const Kernel kernels_vitc_k_scale[] = {
    {vitc_k_scale_avx2, vitc_k_scale_scratch_avx2},
    {vitc_k_scale_avx512, vitc_k_scale_scratch_avx512},
};
const Kernel kernels_vitc_k_shift[] = {
    {vitc_k_shift_avx2, vitc_k_shift_scratch_avx2},
    {vitc_k_shift_avx2, vitc_k_shift_scratch_avx2},
};
const Kernel kernels_vitc_k_total[] = {
    {vitc_k_total_avx2, vitc_k_total_scratch_avx2},
    {vitc_k_total_avx512, vitc_k_total_scratch_avx512},
};

// %h = scale(%x, %w)
const Arg kArgs0[] = {{Space::kInput, 0}, {Space::kWeight, 0}, {Space::kWorkspace, 0}};
// %y = shift(%h, %b)
const Arg kArgs1[] = {{Space::kWorkspace, 0}, {Space::kWeight, 1}, {Space::kOutput, 0}};
// %s = total(%y)
const Arg kArgs2[] = {{Space::kOutput, 0}, {Space::kOutput, 1}};

const Step kSteps[] = {
    {"scale", kernels_vitc_k_scale, kArgs0, 3},
    {"shift", kernels_vitc_k_shift, kArgs1, 3},
    {"total", kernels_vitc_k_total, kArgs2, 2},
};

const char kPayloadHeader[] =
    "x\001\000\000\000\000\000\000{\"w\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,12]"
    "},\"__padding_1\":{\"dtype\":\"U8\",\"shape\":[116],\"data_offsets\":[12,128]},\"b\":{\"dtyp"
    "e\":\"F32\",\"shape\":[3],\"data_offsets\":[128,140]},\"__padding_crc32\":{\"dtype\":\"U8\","
    "\"shape\":[4],\"data_offsets\":[140,144]}}                                                  "
    "                                                                             ";

const char kManifest[] =
    "{\"format\": 1}";

const Table kTable = {
    kManifest,
    {kIsas, 2},
    {kInputs, 1},
    {kOutputs, 2},
    {kWeights, 2},
    kPayloadHeader,
    384,
    144,
    1680,
    {kSteps, 3},
};

}  // namespace vitc::host

#include "vitc/host.h"
