// bfloat16 attention with AMX, for decode rows as for chunks. Scores are made transposed, positions by queries: so keys are
// read as they lie in the cache, 16 positions a tile, and the softmax of 16 queries runs in the lanes of a vector.
// Probabilities are rounded to bfloat16 for their product with the values. Included by attention.h.
#pragma once
#include "linear.h"

namespace semipd {

constexpr int COLUMNS = 16;  // queries of a tile
constexpr int TILED_ROWS = 64;

struct AmxAttentionState {
    alignas(64) bf16 queries[TILED_ROWS * HEAD_DIM_MAX];  // [tile][dim / 2][16][2]
    alignas(64) float sums[TILED_ROWS * HEAD_DIM_MAX];
    alignas(64) float maximum[TILED_ROWS], total[TILED_ROWS];
    alignas(64) int32_t position[TILED_ROWS];  // of each row; -1 beyond the last
};

struct AmxAttentionScratch {
    static constexpr int ROWS = TILED_ROWS;
    alignas(64) bf16 keys[POSITIONS * HEAD_DIM_MAX];      // those that cannot be read in place, padded with 0
    alignas(64) bf16 values[POSITIONS * HEAD_DIM_MAX];    // [32 pairs of positions][dim][2]
    alignas(64) bf16 probabilities[COLUMNS * POSITIONS];  // [2][16 queries][32 positions]
    alignas(64) float scores[POSITIONS * COLUMNS];
    alignas(64) float factor[COLUMNS];
    AmxAttentionState heads[TOGETHER];
    static void start() { configure(TILE_ROWS); }
    static void stop() { _tile_release(); }
};

template <>
struct ScratchOf<bf16> {
    using type = AmxAttentionScratch;
};

// Queries as weights of a product: words of 32 bits, [dim / 2][16], zero beyond the last row and dimension.
template <class P, class Item>
inline void pack_queries(const P& p, const Item& item, int64_t dim, int first, int64_t words, bf16* out) {
    const int rows = item.count * item.group - first;
    for (int64_t word = 0; word < words; word += LANES) {
        const int64_t there = dim / 2 - word;
        VI lines[LANES];
        for (int i = 0; i < LANES; i++) {
            const int r = first + i;
            const bf16* q = p.q + (item.first + r / item.group) * p.q_row + (item.head + r % item.group) * p.q_head;
            lines[i] = i < rows ? load_words(q + 2 * word, int(there)) : zero_bits();
        }
        transpose(lines);
        for (int i = 0; i < LANES; i++) store_bits(out + (word + i) * 2 * COLUMNS, lines[i]);
    }
}

// Two positions side by side, for each pair of the block; those from n on are 0.
inline void pack_values(const bf16* const* values, int n, int64_t dim, bf16* out) {
    alignas(64) static constexpr uint16_t LOW[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const VI low = load_bits(LOW), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int j = 0; j < POSITIONS; j += 2)
        for (int64_t d = 0; d < dim; d += 32, out += 64) {
            const uint32_t there = dim - d >= 32 ? ~0u : 0xffffu;
            const VI even = j < n ? _mm512_maskz_loadu_epi16(there, values[j] + d) : zero_bits();
            const VI odd = j + 1 < n ? _mm512_maskz_loadu_epi16(there, values[j + 1] + d) : zero_bits();
            store_bits(out, _mm512_permutex2var_epi16(even, low, odd));
            if (there == ~0u)
                store_bits(out + 32, _mm512_permutex2var_epi16(even, high, odd));
            else
                out -= 32;
        }
}

// scores[p][q] of a block's positions below n, as far as whole tiles, and one tile of queries.
inline void tile_scores(const bf16* const* keys, int64_t stride, const bf16* queries, int64_t K, int n, float* scores) {
    zero_sums();
    for (int64_t k = 0; k < K; k += TILE_K) {
        _tile_loadd(4, queries + k * COLUMNS, 64);
        _tile_loadd(5, keys[0] + k, 2 * stride);
        _tile_dpbf16ps(0, 5, 4);
        if (n > 16) _tile_loadd(6, keys[16] + k, 2 * stride);
        if (n > 16) _tile_dpbf16ps(1, 6, 4);
        if (n > 32) _tile_loadd(7, keys[32] + k, 2 * stride);
        if (n > 32) _tile_dpbf16ps(2, 7, 4);
        if (n > 48) _tile_loadd(5, keys[48] + k, 2 * stride);
        if (n > 48) _tile_dpbf16ps(3, 5, 4);
    }
    _tile_stored(0, scores, 64);
    _tile_stored(1, scores + 256, 64);
    _tile_stored(2, scores + 512, 64);
    _tile_stored(3, scores + 768, 64);
}

// One block of the online softmax for 16 queries, one a lane, that see positions [low, high) of the block. Leaves
// probabilities as rows of a product, and in `factor` what the sums so far must be multiplied by.
inline void softmax_tile(float* scores, VI low, VI high, float scale, float* maximum, float* total, float* factor,
                         bf16* probabilities) {
    const V hidden = set1(-INFINITY), by = set1(scale);
    const bool all = !_mm512_cmpgt_epi32_mask(low, zero_bits()) && !_mm512_cmplt_epi32_mask(high, _mm512_set1_epi32(POSITIONS));
    V most[4] = {hidden, hidden, hidden, hidden};
    for (int p = 0; p < POSITIONS; p++) {
        V s = load(scores + p * COLUMNS);
        if (!all) {
            const VI at = _mm512_set1_epi32(p);
            s = select(_mm512_cmpgt_epi32_mask(high, at) & _mm512_cmple_epi32_mask(low, at), s, hidden);
            store(scores + p * COLUMNS, s);
        }
        most[p % 4] = max(most[p % 4], s);
    }
    const V before = load(maximum);
    V after = max(before, mul(max(max(most[0], most[1]), max(most[2], most[3])), by));
    store(maximum, after);
    after = select(_mm512_cmp_ps_mask(after, hidden, _CMP_EQ_OQ), zero(), after);  // nothing seen yet: all factors 0
    V sums[4] = {zero(), zero(), zero(), zero()};
    const V minus = sub(zero(), after);
    for (int half = 0; half < 2; half++) {
        VI words[LANES];
        for (int i = 0; i < LANES; i++) {
            const int p = half * 32 + 2 * i;
            V even = exp2(fma(load(scores + p * COLUMNS), by, minus));
            V odd = exp2(fma(load(scores + (p + 1) * COLUMNS), by, minus));
            sums[p % 4] = add(sums[p % 4], even);
            sums[p % 4 + 1] = add(sums[p % 4 + 1], odd);
            words[i] = _mm512_or_si512(_mm512_cvtepu16_epi32(narrow(even)),
                                       _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(odd)), 16));
        }
        transpose(words);
        for (int i = 0; i < LANES; i++) store_bits(probabilities + half * TILE + i * TILE_K, words[i]);
    }
    const V rescale = exp2(add(before, minus));
    store(factor, rescale);
    store(total, fma(load(total), rescale, add(add(sums[0], sums[1]), add(sums[2], sums[3]))));
}

// sums[q][d] += probabilities[q][p] * values[p][d] for 16 queries, C * 16 dimensions.
template <int C>
inline void add_tile_values(const bf16* probabilities, const bf16* values, int64_t dim, float* sums) {
    const int64_t row = 4 * dim;
    _tile_loadd(0, sums, row);
    if (C > 1) _tile_loadd(1, sums + 16, row);
    if (C > 2) _tile_loadd(2, sums + 32, row);
    if (C > 3) _tile_loadd(3, sums + 48, row);
    for (int half = 0; half < 2; half++) {
        const bf16* v = values + half * 32 * dim;
        _tile_loadd(4, probabilities + half * TILE, 64);
        _tile_loadd(5, v, row);
        _tile_dpbf16ps(0, 4, 5);
        if (C > 1) _tile_loadd(6, v + 32, row);
        if (C > 1) _tile_dpbf16ps(1, 4, 6);
        if (C > 2) _tile_loadd(7, v + 64, row);
        if (C > 2) _tile_dpbf16ps(2, 4, 7);
        if (C > 3) _tile_loadd(5, v + 96, row);
        if (C > 3) _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, sums, row);
    if (C > 1) _tile_stored(1, sums + 16, row);
    if (C > 2) _tile_stored(2, sums + 32, row);
    if (C > 3) _tile_stored(3, sums + 48, row);
}

inline void begin_rows(const Attention<bf16>& p, const AttentionItem& item, AmxAttentionState& state) {
    const int64_t K = (p.head_dim + TILE_K - 1) / TILE_K * TILE_K;
    const int rows = item.count * item.group, tiles = (rows + COLUMNS - 1) / COLUMNS;
    for (int r = 0; r < tiles * COLUMNS; r++) {
        state.position[r] = r < rows ? int32_t(item.position + r / item.group) : -1;
        state.maximum[r] = -INFINITY;
        state.total[r] = 0;
    }
    for (int t = 0; t < tiles; t++) pack_queries(p, item, p.head_dim, t * COLUMNS, K / 2, state.queries + t * COLUMNS * K);
    memset(state.sums, 0, size_t(tiles * COLUMNS * p.head_dim) * 4);
}

inline void attend_block(const Attention<bf16>& p, const AttentionItem& item, int64_t base, const bf16** keys,
                         const bf16* const* values, int n, AmxAttentionScratch& s, AmxAttentionState& state) {
    const int64_t dim = p.head_dim, K = (dim + TILE_K - 1) / TILE_K * TILE_K;
    const int tiles = (item.count * item.group + COLUMNS - 1) / COLUMNS;
    const bool in_place = K == dim && p.block_size % TILE_ROWS == 0;
    if (!in_place)
        for (int j = 0; j < POSITIONS; j++) {
            bf16* copy = s.keys + j * K;
            memset(copy, 0, size_t(K) * 2);
            if (j < n) memcpy(copy, keys[j], size_t(dim) * 2);
            keys[j] = copy;
        }
    pack_values(values, n, dim, s.values);
    const int skipped = base > item.position ? int(base - item.position) * item.group / COLUMNS : 0;
    for (int t = skipped; t < tiles; t++) {
        const int first = t * COLUMNS;
        tile_scores(keys, in_place ? p.width : K, state.queries + first * K, K, n, s.scores);
        const VI high = _mm512_sub_epi32(load_bits(state.position + first), _mm512_set1_epi32(int(base) - 1));
        const VI low = p.window ? _mm512_sub_epi32(high, _mm512_set1_epi32(int(p.window))) : zero_bits();
        softmax_tile(s.scores, low, high, p.scale, state.maximum + first, state.total + first, s.factor, s.probabilities);
        float* sums = state.sums + first * dim;
        for (int r = 0; r < COLUMNS; r++) rescale(sums + r * dim, s.factor[r], dim);
        int64_t d = 0;
        for (; d + 64 <= dim; d += 64) add_tile_values<4>(s.probabilities, s.values + 2 * d, dim, sums + d);
        for (; d < dim; d += 16) add_tile_values<1>(s.probabilities, s.values + 2 * d, dim, sums + d);
    }
}

}  // namespace semipd
