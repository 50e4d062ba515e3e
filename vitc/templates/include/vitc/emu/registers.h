// setmaxnreg: a thread's share of the registers that its block was launched with, which are taken
// to be as many as fit (a multiple of 8 for each thread). Checked are the bounds, the direction,
// and at the end of the block that whole warpgroups did the same and that the sum fits.
#pragma once

#include "vitc/emu/machine.h"

namespace vitc::emu {

inline unsigned launch_registers(unsigned threads) {
  unsigned fit = 65536 / threads / 8 * 8;
  return fit > 248 ? 248 : fit;
}

inline void set_registers(unsigned count, bool more, Site site) {
  Thread* self = machine->current;
  if (count % 8 != 0 || count < 24 || count > 256) {
    fail(site, "setmaxnreg %u: want a multiple of 8 from 24 to 256", count);
  }
  if (more ? count < self->registers : count > self->registers) {
    fail(site, "setmaxnreg.%s to %u registers from %u", more ? "inc" : "dec", count,
         self->registers);
  }
  self->registers = count;
  self->registers_site = site;
}

// False, with a failure recorded, if the block's registers do not add up.
inline bool check_registers(const Block& block) {
  unsigned threads = machine->thread_count, sum = 0;
  const Thread* setter = nullptr;
  for (unsigned i = 0; i < threads; ++i) {
    const Thread& t = block.threads[i];
    sum += t.registers;
    if (t.registers_site.line > 0) setter = &t;
    if (t.registers != block.threads[i / 128 * 128].registers) {
      fail_block(&t, t.registers_site, "setmaxnreg by a part of a warpgroup");
      return false;
    }
  }
  if (setter == nullptr || sum <= threads * launch_registers(threads)) return true;
  fail_block(setter, setter->registers_site,
             "the block's warpgroups take %u registers; it was launched with %u", sum,
             threads * launch_registers(threads));
  return false;
}

}  // namespace vitc::emu
