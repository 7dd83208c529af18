/* GCC's _tile_loadconfig (seen with 12.2) declares only the first 8 of the 64 bytes it reads,
 * so the optimizer drops the stores to the rest and llama.cpp crashes at its first matrix
 * product on a CPU with AMX. Included before every llama.cpp source by the Makefile. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#endif
