// The inner product tile that linear and attention share: R rows of x times C vectors of columns of a panel.
// A panel holds 64 output features, K-major: float32 [K][64]; bfloat16 [K / 2][64][2], the pairs that VDPBF16PS and
// TDPBF16PS eat. Each output is one chain over K in ascending order, whatever R and C: so a row's bits do not depend on
// how many rows there are.
#pragma once
#include "simd.h"

namespace semipd {

constexpr int PANEL = 64;

struct DotFloat {
    using T = float;
    static constexpr int STEP = 1, ROWS = LANES == 16 ? 6 : 4, VECTORS = LANES == 16 ? 4 : 2;
    using A = V;
    using B = V;
    static B load_b(const T* p) { return load(p); }
    static A load_a(const T* p, int) { return set1(*p); }
    static V dot(V acc, A a, B b) { return fma(a, b, acc); }
};

#if defined(__AVX512BF16__)
struct DotBf16 {
    using T = bf16;
    static constexpr int STEP = 2, ROWS = 6, VECTORS = 4;
    using A = VI;
    using B = VI;
    static B load_b(const T* p) { return load_bits(p); }
    static A load_a(const T* p, int n) {
        uint32_t pair = p[0];
        if (n > 1) memcpy(&pair, p, 4);
        return set1_bits(pair);
    }
    static V dot(V acc, A a, B b) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
};
#else
struct DotBf16 {
    using T = bf16;
    static constexpr int STEP = 2, ROWS = LANES == 16 ? 4 : 3, VECTORS = LANES == 16 ? 4 : 2;
    struct A {
        V even, odd;
    };
    using B = A;
    static B load_b(const T* p) {
        VI pairs = load_bits(p);
        return {even(pairs), odd(pairs)};
    }
    static A load_a(const T* p, int n) { return {set1(widen(p[0])), n > 1 ? set1(widen(p[1])) : zero()}; }
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

// out[r][c * LANES + lane] for the columns from `w` on; `rows[r]` points at K elements.
template <class D, int R, int C>
inline void dot_tile(const typename D::T* const* rows, const typename D::T* w, int64_t K, float* out, int64_t ldo) {
    V acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = zero();
    constexpr int64_t LINE = PANEL * D::STEP;
    int64_t whole = K - K % D::STEP;
    for (int64_t k = 0; k < whole; k += D::STEP, w += LINE) {
        typename D::B b[C];
        for (int c = 0; c < C; c++) b[c] = D::load_b(w + c * LANES * D::STEP);
        if (R <= 2)
            for (int c = 0; c < C; c += 64 / (LANES * 4)) _mm_prefetch((const char*)(w + 8 * LINE + c * LANES * D::STEP), _MM_HINT_T0);
        for (int r = 0; r < R; r++) {
            typename D::A a = D::load_a(rows[r] + k, D::STEP);
            for (int c = 0; c < C; c++) acc[r][c] = D::dot(acc[r][c], a, b[c]);
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

// One panel for `count` rows, at most D::ROWS. out: float32 [count][64].
template <class D, int C>
inline void dot_columns(const typename D::T* const* rows, int count, const typename D::T* w, int64_t K, float* out) {
    switch (count) {
        case 1: return dot_tile<D, 1, C>(rows, w, K, out, PANEL);
        case 2: return dot_tile<D, 2, C>(rows, w, K, out, PANEL);
        case 3: return dot_tile<D, 3, C>(rows, w, K, out, PANEL);
        case 4: if constexpr (D::ROWS >= 4) return dot_tile<D, 4, C>(rows, w, K, out, PANEL);
        [[fallthrough]];
        case 5: if constexpr (D::ROWS >= 5) return dot_tile<D, 5, C>(rows, w, K, out, PANEL);
        [[fallthrough]];
        default: if constexpr (D::ROWS >= 6) return dot_tile<D, 6, C>(rows, w, K, out, PANEL);
    }
}

template <class D>
inline void dot_panel(const typename D::T* const* rows, int count, const typename D::T* w, int64_t K, float* out) {
    for (int c = 0; c < PANEL; c += D::VECTORS * LANES)
        dot_columns<D, D::VECTORS>(rows, count, w + c * D::STEP, K, out + c);
}

}  // namespace semipd
