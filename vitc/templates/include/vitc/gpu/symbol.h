// The name of a rendered kernel's entry: its symbol, then the architecture it was compiled for.
#pragma once

#define VITC_PASTE_NAMES(a, b) a##_##b
#define VITC_PASTE(a, b) VITC_PASTE_NAMES(a, b)
#define VITC_SYMBOL(name) VITC_PASTE(name, VITC_ISA)
