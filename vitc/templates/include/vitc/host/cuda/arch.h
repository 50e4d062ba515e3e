// Which of a library's architectures a GPU can run, and which of those is best. Needs no CUDA.
//
// Rules: CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility" and
// "Family-Specific Features".
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "vitc/host/error.h"
#include "vitc/host/table.h"

namespace vitc::host {

struct CudaArch {
  int major = 0, minor = 0;
  char suffix = '\0';  // 'a': this chip only; 'f': its family, from this minor on

  // Reads "sm_90a". Code without a suffix includes PTX; that with one must not.
  static CudaArch parse(const char* name) {
    CudaArch arch;
    int number = 0;
    if (std::sscanf(name, "sm_%d%c", &number, &arch.suffix) < 1) {
      fail(VITC_INTERNAL, "'%s' is no architecture of CUDA", name);
    }
    arch.major = number / 10;
    arch.minor = number % 10;
    return arch;
  }

  bool runs_on(CudaArch gpu) const {
    return major == gpu.major && (suffix == 'a' ? minor == gpu.minor : minor <= gpu.minor);
  }
  bool compiles_for(CudaArch gpu) const {  // the driver, from PTX
    return suffix == '\0' && (major < gpu.major || (major == gpu.major && minor <= gpu.minor));
  }

  // How good it is for the GPU; 0 where it cannot run. Machine code before PTX, then the newest,
  // then what names the chip or its family.
  int rank(CudaArch gpu) const {
    if (!runs_on(gpu) && !compiles_for(gpu)) return 0;
    const int special = suffix == 'a' ? 2 : suffix == 'f' ? 1 : 0;
    return (runs_on(gpu) ? 100000 : 1) + (major * 10 + minor) * 10 + special;
  }
};

inline std::string joined(List<const char*> names) {
  std::string text;
  for (const char* name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

// What the environment variable VITC_ISA asks for, or nullptr. Fails where the library lacks it.
inline const char* wanted_isa(List<const char*> isas) {
  const char* wanted = std::getenv("VITC_ISA");
  if (wanted == nullptr || *wanted == '\0') return nullptr;
  for (const char* isa : isas) {
    if (std::strcmp(isa, wanted) == 0) return wanted;
  }
  fail(VITC_INVALID_ARGUMENT, "VITC_ISA is '%s', the library has code for: %s", wanted,
       joined(isas).c_str());
}

// Index of the best of `isas` for the GPU, or of the one that VITC_ISA names. `card` is for people.
inline int32_t choose_cuda_code(List<const char*> isas, CudaArch gpu, const char* card) {
  const char* wanted = wanted_isa(isas);
  int32_t best = -1;
  int best_rank = 0;
  for (int32_t i = 0; i < isas.size; ++i) {
    if (wanted != nullptr && std::strcmp(isas[i], wanted) != 0) continue;
    const int rank = CudaArch::parse(isas[i]).rank(gpu);
    if (rank > best_rank) {
      best = i;
      best_rank = rank;
    }
  }
  if (best >= 0) return best;
  if (wanted != nullptr) {
    fail(VITC_UNSUPPORTED_DEVICE, "VITC_ISA is '%s', which %s with compute capability %d.%d lacks",
         wanted, card, gpu.major, gpu.minor);
  }
  fail(
      VITC_UNSUPPORTED_DEVICE,
      "%s has compute capability %d.%d, the library has code for %s; compile the model for sm_%d%d",
      card, gpu.major, gpu.minor, joined(isas).c_str(), gpu.major, gpu.minor);
}

}  // namespace vitc::host
