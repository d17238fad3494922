// Sums of a panel for any number of rows, with the bits of `dot_panel`. Many rows take float32 arithmetic where that is
// faster: the panel is widened by pieces that stay in the first cache, once for all of them.
#pragma once
#include "wide.h"

namespace semipd {

// For fewer rows, a piece is widened in registers instead (`few.h`).
constexpr int LEAST_TALL = 12;

#if defined(__AVX512BF16__)

// Rows that take a panel together, at most.
constexpr int TALL = 192;
// Pairs of K that are widened at a time: 16 KiB of a panel.
constexpr int PAIRS = 32;

// Float32 rows: of each pair the second elements, then the first.
inline void widen_panel(const bf16* w, int64_t pairs, float* wide) {
    for (int64_t pair = 0; pair < pairs; pair++, w += 2 * PANEL, wide += 2 * PANEL)
        for (int c = 0; c < PANEL; c += LANES) {
            _mm_prefetch((const char*)(w + 2 * PANEL * PAIRS + 2 * c), _MM_HINT_T1);  // of the next piece
            const VI both = load_bits(w + 2 * c);
            store(wide + c, odd(both));
            store(wide + PANEL + c, even(both));
        }
}

// wide[0 .. PAIRS - 1]: the second elements of a row's pairs; from PAIRS on the first ones. After `count` elements zeros.
inline void widen_row(const bf16* x, int64_t count, float* wide) {
    for (int64_t pair = 0; 2 * pair < count; pair += LANES) {
        const int64_t left = count - 2 * pair;
        const VI both = _mm512_maskz_loadu_epi16(left >= 32 ? ~0u : (1u << left) - 1, x + 2 * pair);
        store(wide + pair, odd(both));
        store(wide + PAIRS + pair, even(both));
    }
}

// sums[r][column] of R rows go on over a piece.
template <int R>
inline void tall_tile(const float (*x)[2 * PAIRS], const float* w, int64_t pairs, float* sums) {
    constexpr int C = PANEL / LANES;
    V acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = load(sums + r * PANEL + c * LANES);
    for (int64_t pair = 0; pair < pairs; pair++)
        for (int half = 0; half < 2; half++, w += PANEL) {
            V b[C];
            for (int c = 0; c < C; c++) b[c] = load(w + c * LANES);
            for (int r = 0; r < R; r++) {
                const V a = set1(x[r][half * PAIRS + pair]);
                for (int c = 0; c < C; c++) acc[r][c] = fma(a, b[c], acc[r][c]);
            }
        }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(sums + r * PANEL + c * LANES, acc[r][c]);
}

inline void tall_sums(const bf16* const* rows, int count, const bf16* w, int64_t K, float* sums) {
    constexpr int R = DotBf16::ROWS;
    alignas(64) float wide[2 * PAIRS * PANEL], x[R][2 * PAIRS];
    memset(sums, 0, size_t(count) * PANEL * sizeof(float));
    const int tiles = (count + R - 1) / R;
    for (int64_t k = 0; k < K; k += 2 * PAIRS, w += 2 * PAIRS * PANEL) {
        const int64_t some = K - k < 2 * PAIRS ? K - k : 2 * PAIRS, pairs = (some + 1) / 2;
        widen_panel(w, pairs, wide);
        for (int t = 0; t < tiles; t++) {
            const int first = count * t / tiles, n = count * (t + 1) / tiles - first;
            for (int r = 0; r < n; r++) widen_row(rows[first + r] + k, some, x[r]);
            float* out = sums + first * PANEL;
            switch (n) {
                case 1: tall_tile<1>(x, wide, pairs, out); break;
                case 2: tall_tile<2>(x, wide, pairs, out); break;
                case 3: tall_tile<3>(x, wide, pairs, out); break;
                case 4: tall_tile<4>(x, wide, pairs, out); break;
                case 5: tall_tile<5>(x, wide, pairs, out); break;
                default: tall_tile<6>(x, wide, pairs, out);
            }
        }
    }
}
#else
constexpr int TALL = DotFloat::ROWS;
#endif

// How many of so many rows take a panel together, at most: a tile's, or TALL where that pays.
template <class D>
inline int together(int64_t rows) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(typename D::T) == 2)
        if (use_wide && rows >= LEAST_TALL) return TALL;
#endif
    return D::ROWS;
}

// Into how many equal blocks they are divided for `panel_sums`.
template <class D>
inline int64_t blocks_of(int64_t rows) {
    const int64_t most = together<D>(rows);
    return (rows + most - 1) / most;
}

// One panel for a block's rows; `fetch`: it comes from memory. sums: float32 [count][64].
template <class D>
inline void panel_sums(const typename D::T* const* rows, int count, const typename D::T* w, int64_t K, float* sums,
                       bool fetch) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(typename D::T) == 2)
        if (count > D::ROWS) return flushing([=] { tall_sums(rows, count, w, K, sums); });
#endif
    dot_panel<D>(rows, count, w, 0, K, sums, fetch);
}

}  // namespace semipd
