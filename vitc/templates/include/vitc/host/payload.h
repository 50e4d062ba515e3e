// Finds the weights, in the library's own file or beside it, and maps them.
// vitc/runtime/artifact.py describes and writes the file.
#pragma once
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "vitc/host/error.h"
#include "vitc/host/table.h"

namespace vitc::host {

using Bytes = std::shared_ptr<const std::byte>;

struct Footer {  // the library's last 64 bytes
  char magic[8];
  uint64_t payload_offset;
  uint64_t payload_bytes;  // 0: the weights are beside the library
  uint32_t payload_crc32;  // of all but the payload's last 4 bytes, which are this number
  uint32_t version;
  uint8_t code_digest[16];
  uint64_t code_bytes;
  uint64_t reserved;
};
static_assert(sizeof(Footer) == 64);

class File {
 public:
  explicit File(std::string path) : path_(std::move(path)) {
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) {
      fail(VITC_BAD_WEIGHTS, "cannot open '%s': %s", path_.c_str(), std::strerror(errno));
    }
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const char* path() const { return path_.c_str(); }

  uint64_t size() const {
    struct stat status;
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      fail(VITC_BAD_WEIGHTS, "'%s' is not a regular file", path());
    }
    return static_cast<uint64_t>(status.st_size);
  }

  void read(void* to, uint64_t offset, uint64_t bytes) const {
    auto* out = static_cast<char*>(to);
    while (bytes > 0) {
      const ssize_t got = ::pread(descriptor_, out, bytes, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(VITC_BAD_WEIGHTS, "cannot read '%s': %s", path(), std::strerror(errno));
      if (got == 0) fail(VITC_BAD_WEIGHTS, "'%s' is truncated", path());
      out += got;
      offset += static_cast<uint64_t>(got);
      bytes -= static_cast<uint64_t>(got);
    }
  }

  // Read-only, shared with every other process that maps the file; unmapped with the last owner.
  Bytes map(uint64_t offset, uint64_t bytes) const {
    const uint64_t skip = offset % static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    void* base = ::mmap(nullptr, bytes + skip, PROT_READ, MAP_SHARED, descriptor_,
                        static_cast<off_t>(offset - skip));
    if (base == MAP_FAILED) {
      const vitc_status status = errno == ENOMEM ? VITC_OUT_OF_MEMORY : VITC_BAD_WEIGHTS;
      fail(status, "cannot map '%s': %s", path(), std::strerror(errno));
    }
    return Bytes(static_cast<const std::byte*>(base) + skip,
                 [base, size = bytes + skip](const std::byte*) { ::munmap(base, size); });
  }

 private:
  std::string path_;
  int descriptor_;
};

// The file that this code was loaded from.
inline std::string own_path() {
  Dl_info info;
  if (::dladdr(reinterpret_cast<const void*>(&own_path), &info) == 0 || info.dli_fname == nullptr) {
    fail(VITC_BAD_WEIGHTS, "cannot find the library's own file; pass weights_path");
  }
  return info.dli_fname;
}

inline std::string beside(const std::string& library) {
  const size_t slash = library.rfind('/');
  const size_t dot = library.rfind('.');
  const size_t start = slash == std::string::npos ? 0 : slash + 1;
  const bool suffix = dot != std::string::npos && dot > start;
  return (suffix ? library.substr(0, dot) : library) + ".safetensors";
}

// Maps the data of a payload that must be exactly the one the table describes.
inline Bytes map_payload(const Table& table, const File& file, uint64_t offset, uint64_t bytes) {
  const uint64_t expected = table.payload_header_bytes + table.payload_data_bytes;
  if (bytes != expected) {
    fail(VITC_BAD_WEIGHTS,
         "the weights in '%s' have %" PRIu64 " bytes, the library was compiled for %" PRIu64
         ": they are truncated or belong to another model",
         file.path(), bytes, expected);
  }
  std::string header(table.payload_header_bytes, '\0');
  file.read(header.data(), offset, header.size());
  if (std::memcmp(header.data(), table.payload_header, header.size()) != 0) {
    fail(VITC_BAD_WEIGHTS, "the weights in '%s' belong to another model: names or shapes differ",
         file.path());
  }
  const Bytes payload = file.map(offset, bytes);
  return Bytes(payload, payload.get() + header.size());
}

inline Bytes map_weights(const Table& table, const char* weights_path) {
  if (weights_path != nullptr) {
    const File file(weights_path);
    return map_payload(table, file, 0, file.size());
  }
  const File library(own_path());
  const uint64_t size = library.size();
  Footer footer{};
  if (size >= sizeof footer) library.read(&footer, size - sizeof footer, sizeof footer);
  if (std::memcmp(footer.magic, "VITCWTS1", sizeof footer.magic) != 0 || footer.version != 2) {
    fail(VITC_BAD_WEIGHTS, "'%s' does not end with a footer of vitc: truncated or stripped",
         library.path());
  }
  if (footer.payload_bytes == 0) {
    const File file(beside(library.path()));
    const Bytes weights = map_payload(table, file, 0, file.size());
    uint32_t crc32 = 0;
    file.read(&crc32, file.size() - sizeof crc32, sizeof crc32);
    if (crc32 != footer.payload_crc32) {
      fail(
          VITC_BAD_WEIGHTS,
          "the weights in '%s' belong to another library of this model: their checksum is not that "
          "of '%s'; copy the two files together, or pass weights_path to use others on purpose",
          file.path(), library.path());
    }
    return weights;
  }
  if (footer.payload_offset > size || footer.payload_bytes > size - footer.payload_offset) {
    fail(VITC_BAD_WEIGHTS, "the weights in '%s' are truncated", library.path());
  }
  return map_payload(table, library, footer.payload_offset, footer.payload_bytes);
}

}  // namespace vitc::host
