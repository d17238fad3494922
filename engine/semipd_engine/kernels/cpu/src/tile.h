// The inner product tile that linear and attention share: R rows of x times C vectors of columns of a panel.
// A panel holds 64 output features, K-major: float32 [K][64]; bfloat16 [K / 2][64][2], the pairs that VDPBF16PS and
// TDPBF16PS eat. Each output is one chain over K in ascending order, whatever R and C: so a row's bits do not depend on
// how many rows there are.
#pragma once
#include "simd.h"

namespace semipd {

constexpr int PANEL = 64;

// Vectors of columns that R rows take at once: as many sums as hide the latency of their chains and fit the registers.
// One row takes the whole panel, so that its lines are read whole and once.
constexpr int vectors(int rows) { return LANES == 16 ? 4 : rows == 1 ? 8 : rows == 2 ? 4 : 2; }

struct DotFloat {
    using T = float;
    using X = float;
    static constexpr int STEP = 1, ROWS = LANES == 16 ? 6 : 4;
    using A = V;
    using B = V;
    static B load_b(const T* p) { return load(p); }
    static A load_a(const T* p, int) { return set1(*p); }
    static V dot(V acc, A a, B b) { return fma(a, b, acc); }
};

// p[0] and, of n > 1, p[1], else 0.
inline uint32_t pair_of(const bf16* p, int n) {
    uint32_t pair = p[0];
    if (n > 1) memcpy(&pair, p, 4);
    return pair;
}

// Pairs of bfloat16 widened in registers.
struct Halves {
    V even, odd;
    static Halves of(VI pairs) { return {semipd::even(pairs), semipd::odd(pairs)}; }
};

#if defined(__AVX512BF16__)
struct DotBf16 {
    using T = bf16;
    using X = bf16;
    static constexpr int STEP = 2, ROWS = 6;
    using A = VI;
    using B = VI;
    static B load_b(const T* p) { return load_bits(p); }
    static A load_a(const T* p, int n) { return set1_bits(pair_of(p, n)); }
    static V dot(V acc, A a, B b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
};

// The same by float32 arithmetic (`wide.h`), of rows that are float32 already.
struct DotWide {
    using T = bf16;
    using X = float;
    static constexpr int STEP = 2, ROWS = 6;
    using A = Halves;
    using B = Halves;
    static B load_b(const T* p) { return Halves::of(load_bits(p)); }
    static A load_a(const X* p, int n) { return {set1(p[0]), n > 1 ? set1(p[1]) : zero()}; }
    static V dot(V acc, A a, B b) { return fma(a.even, b.even, fma(a.odd, b.odd, acc)); }
};
#else
struct DotBf16 {
    using T = bf16;
    using X = bf16;
    static constexpr int STEP = 2, ROWS = 4;
    using A = Halves;
    using B = Halves;
    static B load_b(const T* p) { return Halves::of(load_bits(p)); }
    static A load_a(const T* p, int n) { return Halves::of(set1_bits(pair_of(p, n))); }
    static V dot(V acc, A a, B b) { return fma(a.odd, b.odd, fma(a.even, b.even, acc)); }
};
#endif

template <class T>
struct DotOf;
template <>
struct DotOf<float> {
    using type = DotFloat;
};
template <>
struct DotOf<bf16> {
    using type = DotBf16;
};

// GCC keeps an array in registers only if the loops over it are unrolled early.
#define UNROLLED _Pragma("GCC unroll 8")

// How far ahead of itself a panel that comes from memory is asked for, in bytes.
constexpr int AHEAD = 2048;

// out[r][c * LANES + lane] over elements from .. to - 1 of K, for the columns from `w` on; `from` is a multiple of STEP, and
// above 0 the sums so far, in `out`, go on. FETCH: lines of all the panel's columns are asked for ahead.
template <class D, int R, int C, bool FETCH>
inline void dot_tile(const typename D::X* const* rows, const typename D::T* w, int64_t from, int64_t to, float* out,
                     int64_t ldo) {
    V acc[R][C];
    const int so_far = from > 0 ? LANES : 0;
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int c = 0; c < C; c++) acc[r][c] = load(out + r * ldo + c * LANES, so_far);
    constexpr int64_t LINE = PANEL * D::STEP;
    const int64_t whole = to - (to - from) % D::STEP;
    w += from * PANEL;
    for (int64_t k = from; k < whole; k += D::STEP, w += LINE) {
        if constexpr (FETCH)
            for (int byte = 0; byte < int(LINE * sizeof(*w)); byte += 64)
                _mm_prefetch((const char*)w + AHEAD + byte, _MM_HINT_T1);
        // What is held across the inner loop is the smaller operand: sums and it fit the registers.
        if constexpr (R <= C) {
            typename D::A a[R];
            UNROLLED for (int r = 0; r < R; r++) a[r] = D::load_a(rows[r] + k, D::STEP);
            UNROLLED for (int c = 0; c < C; c++) {
                typename D::B b = D::load_b(w + c * LANES * D::STEP);
                UNROLLED for (int r = 0; r < R; r++) acc[r][c] = D::dot(acc[r][c], a[r], b);
            }
        } else {
            typename D::B b[C];
            UNROLLED for (int c = 0; c < C; c++) b[c] = D::load_b(w + c * LANES * D::STEP);
            UNROLLED for (int r = 0; r < R; r++) {
                typename D::A a = D::load_a(rows[r] + k, D::STEP);
                UNROLLED for (int c = 0; c < C; c++) acc[r][c] = D::dot(acc[r][c], a, b[c]);
            }
        }
    }
    UNROLLED for (int r = 0; r < R; r++)
        UNROLLED for (int c = 0; c < C; c++) store(out + r * ldo + c * LANES, acc[r][c]);
    if (whole == to) return;
    // Apart from the loop above, whose sums stay in registers.
    for (int r = 0; r < R; r++) {
        const typename D::A a = D::load_a(rows[r] + whole, 1);
        for (int c = 0; c < C; c++) {
            float* sums = out + r * ldo + c * LANES;
            store(sums, D::dot(load(sums), a, D::load_b(w + c * LANES * D::STEP)));
        }
    }
}

template <class D, int R>
inline void dot_rows(const typename D::X* const* rows, const typename D::T* w, int64_t from, int64_t to, float* out,
                     bool fetch) {
    constexpr int C = vectors(R);
    if (fetch)
        dot_tile<D, R, C, true>(rows, w, from, to, out, PANEL);
    else
        dot_tile<D, R, C, false>(rows, w, from, to, out, PANEL);
    for (int c = C * LANES; c < PANEL; c += C * LANES)
        dot_tile<D, R, C, false>(rows, w + c * D::STEP, from, to, out + c, PANEL);
}

// Elements from .. to - 1 of one panel for `count` rows, at most D::ROWS; `fetch`: it comes from memory.
// out: float32 [count][64].
template <class D>
inline void dot_panel(const typename D::X* const* rows, int count, const typename D::T* w, int64_t from, int64_t to,
                      float* out, bool fetch) {
    switch (count) {
        case 1: return dot_rows<D, 1>(rows, w, from, to, out, fetch);
        case 2: return dot_rows<D, 2>(rows, w, from, to, out, fetch);
        case 3: return dot_rows<D, 3>(rows, w, from, to, out, fetch);
        case 4: return dot_rows<D, 4>(rows, w, from, to, out, fetch);
        case 5: if constexpr (D::ROWS >= 5) return dot_rows<D, 5>(rows, w, from, to, out, fetch);
        [[fallthrough]];
        default: if constexpr (D::ROWS >= 6) return dot_rows<D, 6>(rows, w, from, to, out, fetch);
    }
}

}  // namespace semipd
