// Sums of pairs of bfloat16 by float32 arithmetic, where VDPBF16PS takes longer than the two FMAs that it is: on Sapphire
// Rapids, twice as long. It adds the product of a pair's second elements, then that of the first ones, each fused and rounded
// to nearest even, denormals as zeros whatever MXCSR says (Intel SDM, VDPBF16PS): two FMAs that flush denormals give the same
// bits.
#pragma once
#include "tile.h"

namespace semipd {

#if defined(__AVX512BF16__)

// Ticks of the least of some tries: what another program took meanwhile counts for nothing.
template <class F>
inline uint64_t ticks(F&& step) {
    uint64_t best = ~0ull;
    for (int attempt = 0; attempt < 5; attempt++) {
        const uint64_t begin = __rdtsc();
        for (int i = 0; i < 200; i++) step();
        const uint64_t took = __rdtsc() - begin;
        best = took < best ? took : best;
    }
    return best;
}

// Is widening worth it? Of twelve chains each, as many as hide their latency. Some 20 us.
inline bool pairs_are_slow() {
    constexpr int CHAINS = 12;
    V acc[CHAINS];
    for (V& sum : acc) sum = zero();
    VI pair = zero_bits();
    const uint64_t pairs = ticks([&] {
        for (V& sum : acc) sum = DotBf16::dot(sum, pair, pair);
        asm volatile("" : "+v"(pair));
    });
    V one = zero();
    const uint64_t fmas = ticks([&] {
        for (int half = 0; half < 2; half++)
            for (V& sum : acc) sum = fma(one, one, sum);
        asm volatile("" : "+v"(one));
    });
    for (V& sum : acc) asm volatile("" : "+v"(sum));
    return 4 * pairs > 5 * fmas;
}

// Said once, when the library starts.
inline bool use_wide = false;

// Not inlined: nothing of it may move to where denormals are kept.
template <class F>
__attribute__((noinline)) void apart(const F& work) {
    work();
}

// work() with denormals flushed.
template <class F>
inline void flushing(const F& work) {
    constexpr unsigned FLUSH_AND_ZERO = 0x8040;
    const unsigned mxcsr = _mm_getcsr();
    _mm_setcsr(mxcsr | FLUSH_AND_ZERO);
    apart(work);
    _mm_setcsr(mxcsr);
}

#endif

}  // namespace semipd
