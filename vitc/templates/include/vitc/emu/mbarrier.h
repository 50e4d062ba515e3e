// mbarrier: 64 bits of shared memory that count arrivals and bytes. A phase completes when no
// arrival is pending and as many bytes have landed as were expected; then the parity turns and all
// arrivals are pending again (PTX ISA, "Phase of the mbarrier object"). Bytes may land before they
// are expected. The state lies in the barrier's own 64 bits, so what writes over a barrier shows.
#pragma once

#include "vitc/emu/cluster.h"
#include "vitc/emu/proxy.h"

namespace vitc::emu {

struct Phase {
  static constexpr unsigned kMost = (1u << 20) - 1;  // arrivals; bytes either way
  static constexpr uint64_t kInitialised = 1;        // the two uppermost bits; NaN has 3 there

  unsigned pending, arrivals, parity;
  int bytes;  // expected and not landed

  static bool read(const uint64_t* barrier, Phase* out) {
    const uint64_t bits = *barrier;
    *out = {unsigned(bits) & kMost, unsigned(bits >> 20) & kMost, unsigned(bits >> 61) & 1,
            int(int64_t(bits << 3) >> 43)};
    return bits >> 62 == kInitialised && out->arrivals > 0;
  }
  void write(uint64_t* barrier) {
    if (pending == 0 && bytes == 0) {
      parity ^= 1;
      pending = arrivals;
    }
    *barrier = pending | uint64_t(arrivals) << 20 | (uint64_t(unsigned(bytes)) & 0x1fffff) << 40 |
               uint64_t(parity) << 61 | kInitialised << 62;
  }
};

inline void check_barrier(const uint64_t* barrier, Site site) {
  check_aligned("mbarrier", barrier, 8, site);
  check_shared("mbarrier", barrier, 8, site);
}

inline Phase read_phase(const uint64_t* barrier, Site site) {
  Phase phase;
  if (!Phase::read(barrier, &phase)) {
    fail(site, "mbarrier at shared offset %ld is not initialised", shared_offset(barrier));
  }
  return phase;
}

inline void mbarrier_init(uint64_t* barrier, int arrivals, Site site) {
  check_barrier(barrier, site);
  if (arrivals < 1 || arrivals > int(Phase::kMost))
    fail(site, "mbarrier for %d arrivals", arrivals);
  Phase{unsigned(arrivals), unsigned(arrivals), 0, 0}.write(barrier);
  machine->barrier_inits.push_back({barrier, machine->current, site});
}

// One arrival, and `bytes` more that copies will bring.
inline void mbarrier_arrive(uint64_t* barrier, int bytes, Site site) {
  Phase phase = read_phase(barrier, site);
  if (bytes < 0) fail(site, "an mbarrier is to expect %d bytes", bytes);
  if (phase.pending == 0) {
    fail(site, "more than %u arrivals at the mbarrier at shared offset %ld, %d bytes not landed",
         phase.arrivals, shared_offset(barrier), phase.bytes);
  }
  phase.bytes += bytes;
  if (phase.bytes > int(Phase::kMost)) fail(site, "an mbarrier expects %d bytes", phase.bytes);
  --phase.pending;
  phase.write(barrier);
}

// Bytes that have landed; from the scheduler. False if the barrier is none or cannot count them.
inline bool mbarrier_complete(uint64_t* barrier, unsigned bytes) {
  Phase phase;
  if (!Phase::read(barrier, &phase)) return false;
  phase.bytes -= int(bytes);
  if (phase.bytes < -int(Phase::kMost)) return false;
  phase.write(barrier);
  return true;
}

// st.async: 16 bytes to another block, whose barrier counts them. They land at once.
inline void send(const float (&v)[4], float* local, uint64_t* barrier, unsigned rank, Site site) {
  check_aligned("send", local, 16, site);
  check_barrier(barrier, site);
  float* target = remote(local, rank, site);
  check_shared("send", local, 16, site);
  uint64_t* counting = remote(barrier, rank, site);
  check_init(counting, site);
  note_shared(*machine->blocks[rank], target, 16, site);
  std::memcpy(target, v, 16);
  if (!mbarrier_complete(counting, 16)) fail(site, "no mbarrier counts what is sent");
}

inline bool phase_done(const Thread& thread) {
  Phase phase;
  return Phase::read(thread.phase_barrier, &phase) && phase.parity != thread.parity;
}

// Waits until the phase of that parity has completed.
inline void mbarrier_wait(uint64_t* barrier, unsigned parity, Site site) {
  check_barrier(barrier, site);
  read_phase(barrier, site);
  Thread* self = machine->current;
  ++self->waits;
  self->phase_barrier = barrier;
  self->parity = parity & 1;
  if (!phase_done(*self)) stop(State::at_phase, "mbarrier wait", nullptr, site);
}

}  // namespace vitc::emu
