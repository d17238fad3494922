// The inner product tile that linear and attention share: R rows of x times C vectors of columns of a panel.
// A panel holds 64 output features, K-major: float32 [K][64]; bfloat16 [K / 2][64][2], the pairs that VDPBF16PS and
// TDPBF16PS eat. Each output is one chain over K in ascending order, whatever R and C: so a row's bits do not depend on
// how many rows there are.
#pragma once
#include "simd.h"

namespace semipd {

constexpr int PANEL = 64;

// Vectors of columns that R rows take at once: as many sums as hide the latency of their chains and fit the registers.
// One row takes the whole panel, so that memory is read in one stream.
constexpr int vectors(int rows) { return LANES == 16 ? 4 : rows == 1 ? 8 : rows == 2 ? 4 : 2; }

struct DotFloat {
    using T = float;
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

#if defined(__AVX512BF16__)
struct DotBf16 {
    using T = bf16;
    static constexpr int STEP = 2, ROWS = 6;
    using A = VI;
    using B = VI;
    static B load_b(const T* p) { return load_bits(p); }
    static A load_a(const T* p, int n) { return set1_bits(pair_of(p, n)); }
    static V dot(V acc, A a, B b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
};
#else
struct DotBf16 {
    using T = bf16;
    static constexpr int STEP = 2, ROWS = 4;
    struct A {
        V even, odd;
    };
    using B = A;
    static B load_b(const T* p) {
        VI pairs = load_bits(p);
        return {even(pairs), odd(pairs)};
    }
    static A load_a(const T* p, int n) {
        VI pair = set1_bits(pair_of(p, n));
        return {even(pair), odd(pair)};
    }
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

// out[r][c * LANES + lane] for the columns from `w` on; `rows[r]` points at K elements. FETCH: the panel comes from memory,
// and lines of all its columns are asked for ahead.
template <class D, int R, int C, bool FETCH>
inline void dot_tile(const typename D::T* const* rows, const typename D::T* w, int64_t K, float* out, int64_t ldo) {
    V acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = zero();
    constexpr int64_t LINE = PANEL * D::STEP;
    int64_t whole = K - K % D::STEP;
    for (int64_t k = 0; k < whole; k += D::STEP, w += LINE) {
        if constexpr (FETCH)
            for (int byte = 0; byte < int(LINE * sizeof(*w)); byte += 64) {
                if constexpr (LANES == 16) _mm_prefetch((const char*)(w + 32 * LINE) + byte, _MM_HINT_T1);
                _mm_prefetch((const char*)(w + (LANES == 16 ? 4 : 8) * LINE) + byte, _MM_HINT_T0);
            }
        // What is held across the inner loop is the smaller operand: sums and it fit the registers.
        if constexpr (R <= C) {
            typename D::A a[R];
            for (int r = 0; r < R; r++) a[r] = D::load_a(rows[r] + k, D::STEP);
            for (int c = 0; c < C; c++) {
                typename D::B b = D::load_b(w + c * LANES * D::STEP);
                for (int r = 0; r < R; r++) acc[r][c] = D::dot(acc[r][c], a[r], b);
            }
        } else {
            typename D::B b[C];
            for (int c = 0; c < C; c++) b[c] = D::load_b(w + c * LANES * D::STEP);
            for (int r = 0; r < R; r++) {
                typename D::A a = D::load_a(rows[r] + k, D::STEP);
                for (int c = 0; c < C; c++) acc[r][c] = D::dot(acc[r][c], a, b[c]);
            }
        }
    }
    if (whole < K)
        for (int r = 0; r < R; r++) {
            typename D::A a = D::load_a(rows[r] + whole, 1);
            for (int c = 0; c < C; c++) acc[r][c] = D::dot(acc[r][c], a, D::load_b(w + c * LANES * D::STEP));
        }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(out + r * ldo + c * LANES, acc[r][c]);
}

template <class D, int R>
inline void dot_rows(const typename D::T* const* rows, const typename D::T* w, int64_t K, float* out, bool fetch) {
    constexpr int C = vectors(R);
    if (fetch)
        dot_tile<D, R, C, true>(rows, w, K, out, PANEL);
    else
        dot_tile<D, R, C, false>(rows, w, K, out, PANEL);
    for (int c = C * LANES; c < PANEL; c += C * LANES)
        dot_tile<D, R, C, false>(rows, w + c * D::STEP, K, out + c, PANEL);
}

// One panel for `count` rows, at most D::ROWS; `fetch`: it comes from memory. out: float32 [count][64].
template <class D>
inline void dot_panel(const typename D::T* const* rows, int count, const typename D::T* w, int64_t K, float* out,
                      bool fetch) {
    switch (count) {
        case 1: return dot_rows<D, 1>(rows, w, K, out, fetch);
        case 2: return dot_rows<D, 2>(rows, w, K, out, fetch);
        case 3: return dot_rows<D, 3>(rows, w, K, out, fetch);
        case 4: return dot_rows<D, 4>(rows, w, K, out, fetch);
        case 5: if constexpr (D::ROWS >= 5) return dot_rows<D, 5>(rows, w, K, out, fetch);
        [[fallthrough]];
        default: if constexpr (D::ROWS >= 6) return dot_rows<D, 6>(rows, w, K, out, fetch);
    }
}

}  // namespace semipd
