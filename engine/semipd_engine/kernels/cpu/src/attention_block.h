// One block of positions for rows of a softmax that goes on from block to block, in float32.
#pragma once
#include "attention_walk.h"

namespace semipd {

// The keys of n positions as a panel of 64 columns: words of 32 bits (pairs of bfloat16) become K-major.
template <class T>
inline void key_panel(const T* const* keys, int n, int64_t head_dim, T* panel) {
    constexpr int PER_WORD = 4 / sizeof(T);
    int64_t words = head_dim / PER_WORD;
    for (int p = 0; p < POSITIONS; p += LANES)
        for (int64_t word = 0; word < words; word += LANES) {
            int64_t some = words - word < LANES ? words - word : LANES;
            VI rows[LANES];
            for (int i = 0; i < LANES; i++)
                rows[i] = p + i < n ? load_words(keys[p + i] + word * PER_WORD, int(some)) : zero_bits();
            transpose(rows);
            for (int64_t i = 0; i < some; i++) store_bits(panel + ((word + i) * POSITIONS + p) * PER_WORD, rows[i]);
        }
}

// sums[r][d] += probabilities[r][j] * values[j][d] for j < n, R rows and C vectors of d.
template <class T, int R, int C>
inline void add_values(const float* probabilities, const T* const* values, int n, int64_t d, float* sums, int64_t head_dim) {
    V acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = load(sums + r * head_dim + d + c * LANES);
    for (int j = 0; j < n; j++) {
        V value[C];
        for (int c = 0; c < C; c++) value[c] = load(values[j] + d + c * LANES);
        for (int r = 0; r < R; r++) {
            V probability = set1(probabilities[r * POSITIONS + j]);
            for (int c = 0; c < C; c++) acc[r][c] = fma(probability, value[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(sums + r * head_dim + d + c * LANES, acc[r][c]);
}

template <class T, int R>
inline void add_values(const float* probabilities, const T* const* values, int n, float* sums, int64_t head_dim) {
    constexpr int C = LANES == 16 ? 4 : 2;
    int64_t d = 0;
    for (; d + C * LANES <= head_dim; d += C * LANES)
        add_values<T, R, C>(probabilities, values, n, d, sums, head_dim);
    for (; d < head_dim; d += LANES) add_values<T, R, 1>(probabilities, values, n, d, sums, head_dim);
}

// The same for rows first .. rows - 1, whose sums and probabilities lie one behind the other.
template <class T>
inline void add_rows(const float* probabilities, const T* const* values, int n, int first, int rows, float* sums, int64_t dim) {
    constexpr int R = LANES == 16 ? 6 : 4;
    int r = first;
    for (; r + R <= rows; r += R) add_values<T, R>(probabilities + r * POSITIONS, values, n, sums + r * dim, dim);
    for (; r + 2 <= rows; r += 2) add_values<T, 2>(probabilities + r * POSITIONS, values, n, sums + r * dim, dim);
    for (; r < rows; r++) add_values<T, 1>(probabilities + r * POSITIONS, values, n, sums + r * dim, dim);
}

inline void rescale(float* sums, float factor, int64_t dim) {
    if (factor != 1.0f)
        for (int64_t d = 0; d < dim; d += LANES) store(sums + d, mul(load(sums + d), set1(factor)));
}

// One block of the online softmax for one row that sees positions [low, high) of the block.
inline float softmax_block(float* scores, int low, int high, float scale, float& maximum, float& total) {
    const V hidden = set1(-INFINITY);
    V most = hidden;
    for (int p = 0; p < POSITIONS; p += LANES) {
        V s = mul(load(scores + p), set1(scale));
        s = select(first(high - p), s, hidden);
        if (low > p) s = select(first(low - p), hidden, s);
        store(scores + p, s);
        most = max(most, s);
    }
    float before = maximum;
    float after = largest(most) > before ? largest(most) : before;
    maximum = after;
    if (after == -INFINITY) after = 0;  // nothing seen yet: all differences are -inf, all factors 0
    V sums = zero();
    for (int p = 0; p < POSITIONS; p += LANES) {
        V e = exp2(sub(load(scores + p), set1(after)));
        store(scores + p, e);
        sums = add(sums, e);
    }
    alignas(64) float factor[LANES];
    store(factor, exp2(set1(before - after)));
    total = total * factor[0] + sum(sums);
    return factor[0];
}

}  // namespace semipd
