// Attention with 8 lanes: keys are read as they lie in the cache, for a transpose of a block costs more than the few rows of
// a decode step do with it. Lane l of a score sums its products over the dimensions that fall to it, in ascending order; the
// lanes are added in one tree. So a row's bits hang neither on the rows beside it nor on how many positions go together.
#pragma once
#include "attention_block.h"

namespace semipd {

constexpr int TILE = 8;  // positions

// 32 bytes of a row are one vector of float32 or two of bfloat16, its even dimensions before its odd ones. Queries, sums, and
// what is widened for many rows lie in that order.
template <class T>
constexpr int WORD = 32 / int(sizeof(T));
template <class T>
constexpr int PARTS = WORD<T> / LANES;

inline V part(const float* word, int) { return load(word); }
inline V part(const bf16* word, int which) { return which ? odd(load_bits(word)) : even(load_bits(word)); }

template <class T>
inline void widen_row(const T* row, int64_t dim, float* out) {
    for (int64_t d = 0; d < dim; d += WORD<T>)
        for (int i = 0; i < PARTS<T>; i++) store(out + d + i * LANES, part(row + d, i));
}

// From there back to the order of dimensions.
inline void put_word(float* out, const V* parts) { store(out, parts[0]); }
inline void put_word(bf16* out, const V* parts) {
    const V low = _mm256_unpacklo_ps(parts[0], parts[1]), high = _mm256_unpackhi_ps(parts[0], parts[1]);
    store(out, _mm256_permute2f128_ps(low, high, 0x20));
    store(out + LANES, _mm256_permute2f128_ps(low, high, 0x31));
}

// The sums of four vectors' lanes, in one tree.
inline __m128 sums_of(const V* four) {
    const V all = _mm256_hadd_ps(_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// scores[r][p] = queries[r] . keys[p] for R rows and P positions.
template <class T, int R, int P>
inline void dot_keys(const float* queries, int64_t dim, const T* const* keys, float* scores) {
    V acc[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) acc[r][p] = zero();
    for (int64_t d = 0; d < dim; d += WORD<T>)
        for (int i = 0; i < PARTS<T>; i++) {
            V q[R];
            for (int r = 0; r < R; r++) q[r] = load(queries + r * dim + d + i * LANES);
            for (int p = 0; p < P; p++) {
                const V key = part(keys[p] + d, i);
                for (int r = 0; r < R; r++) acc[r][p] = fma(q[r], key, acc[r][p]);
            }
        }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p += 4) _mm_storeu_ps(scores + r * POSITIONS + p, sums_of(acc[r] + p));
}

// The same for TILE positions.
template <class T, int R>
inline void score_rows(const float* queries, int64_t dim, const T* const* keys, float* scores) {
    constexpr int P = R == 1 ? 8 : 4;
    for (int p = 0; p < TILE; p += P) dot_keys<T, R, P>(queries, dim, keys + p, scores + p);
}

// sums[r][d] += probabilities[r][j] * values[j][d] for j < n, R rows and C vectors from dimension d on.
template <class T, int R, int C>
inline void add_values(const float* probabilities, const T* const* values, int n, int64_t d, int64_t dim, float* sums) {
    V acc[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) acc[r][c] = load(sums + r * dim + d + c * LANES);
    for (int j = 0; j < n; j++) {
        V weight[R];
        for (int r = 0; r < R; r++) weight[r] = set1(probabilities[r * POSITIONS + j]);
        for (int c = 0; c < C; c++) {
            const V value = part(values[j] + d + c / PARTS<T> * WORD<T>, c % PARTS<T>);
            for (int r = 0; r < R; r++) acc[r][c] = fma(weight[r], value, acc[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(sums + r * dim + d + c * LANES, acc[r][c]);
}

template <class T, int R>
inline void value_rows(const float* probabilities, const T* const* values, int n, int64_t dim, float* sums) {
    constexpr int C = R == 1 ? 8 : 4;
    int64_t d = 0;
    for (; d + C * LANES <= dim; d += C * LANES) add_values<T, R, C>(probabilities, values, n, d, dim, sums);
    for (; d < dim; d += 2 * LANES) add_values<T, R, 2>(probabilities, values, n, d, dim, sums);
}

template <class T>
struct AttentionState {
    alignas(64) float scores[QUERY_ROWS * POSITIONS];
    alignas(64) float sums[QUERY_ROWS * HEAD_DIM_MAX];
    alignas(64) float queries[QUERY_ROWS * HEAD_DIM_MAX];
    float maximum[QUERY_ROWS], total[QUERY_ROWS];
};

template <class T>
struct AttentionScratch {
    static constexpr int ROWS = QUERY_ROWS;
    alignas(64) float wide[POSITIONS * HEAD_DIM_MAX];  // keys, then values of a block that many rows share
    const float* rows[POSITIONS];
    AttentionState<T> heads[TOGETHER];
    static void start() {}
    static void stop() {}
};

template <class T>
inline void begin_rows(const Attention<T>& p, const AttentionItem& item, AttentionState<T>& state) {
    const int rows = item.count * item.group;
    for (int r = 0; r < rows; r++) {
        const T* q = p.q + (item.first + r / item.group) * p.q_row + (item.head + r % item.group) * p.q_head;
        widen_row(q, p.head_dim, state.queries + r * p.head_dim);
        state.maximum[r] = -INFINITY;
        state.total[r] = 0;
    }
    memset(state.sums, 0, size_t(rows * p.head_dim) * 4);
}

template <int N>
struct Rows {
    constexpr operator int() const { return N; }
};

// fn(r, R) for rows first .. rows - 1, three at a time: so many hide the latency of their chains and fit the registers.
template <class F>
inline void by_rows(int first, int rows, const F& fn) {
    int r = first;
    for (; r + 3 <= rows; r += 3) fn(r, Rows<3>());
    if (rows - r == 2) fn(r, Rows<2>());
    if (rows - r == 1) fn(r, Rows<1>());
}

// Scores of rows `first` to `rows` of some heads: of `keys`, which are those of the first head, n and filled up to whole
// tiles. What is read of all heads lies side by side, and is read in the order of addresses.
template <class T, class K>
inline void score_heads(const K* const* keys, int n, int first, int rows, int64_t dim, AttentionState<T>* heads, int count) {
    for (int at = 0; at < n; at += TILE)
        for (int i = 0; i < count; i++) {
            const K* some[TILE];
            for (int j = 0; j < TILE; j++) some[j] = keys[at + j] + i * dim;
            by_rows(first, rows, [&](int r, auto R) {
                score_rows<K, R>(heads[i].queries + r * dim, dim, some, heads[i].scores + r * POSITIONS + at);
            });
        }
}

// Their sums, `step` positions at a time.
template <class T, class K>
inline void sum_heads(const K* const* values, int n, int step, int first, int rows, int64_t dim, AttentionState<T>* heads,
                      int count) {
    for (int at = 0; at < n; at += step)
        for (int i = 0; i < count; i++) {
            const int here = n - at < step ? n - at : step;
            const K* some[POSITIONS];
            for (int j = 0; j < here; j++) some[j] = values[at + j] + i * dim;
            by_rows(first, rows, [&](int r, auto R) {
                value_rows<K, R>(heads[i].scores + r * POSITIONS + at, some, here, dim, heads[i].sums + r * dim);
            });
        }
}

template <class T>
inline void softmax_rows(const Attention<T>& p, const AttentionItem& item, int64_t base, int first, AttentionState<T>& state) {
    for (int r = first; r < item.count * item.group; r++) {
        const int64_t position = item.position + r / item.group;
        const int high = int(position + 1 - base < POSITIONS ? position + 1 - base : POSITIONS);
        const int64_t start = p.window ? position + 1 - p.window - base : 0;
        const int low = start > POSITIONS ? POSITIONS : start > 0 ? int(start) : 0;
        float factor = softmax_block(state.scores + r * POSITIONS, low, high, p.scale, state.maximum[r], state.total[r]);
        rescale(state.sums + r * p.head_dim, factor, p.head_dim);
    }
}

// Each of n rows widened, for more than MANY rows of queries: that costs less than doing it for three at a time.
constexpr int MANY = 6;
template <class T>
inline const float* const* widen_rows(const T* const* from, int n, int64_t dim, AttentionScratch<T>& s) {
    for (int j = 0; j < n; j++) {
        widen_row(from[j], dim, s.wide + j * dim);
        s.rows[j] = s.wide + j * dim;
    }
    return s.rows;
}

// The lines of a block in as many streams as it has places: what is far from each other is asked for together, so that the
// waits for pages and lines overlap. In the order of addresses a decode row takes 1.1 to 1.3 times as long (Zen 4).
template <class T>
inline void ask_for(const Attention<T>& p, const Places& places) {
    constexpr int APART = 16;
    for (int i = 0; i < APART; i++)
        for (int j = i; j < places.count; j += APART) {
            const T *keys = p.keys + places.at[j], *values = p.values + places.at[j];
            for (int64_t d = 0; d < places.together * p.head_dim; d += 64 / int64_t(sizeof(T))) {
                touch(keys + d);
                touch(values + d);
            }
        }
}

template <class T>
inline void attend_heads(const Attention<T>& p, const AttentionItem& item, int64_t base, const Places& places,
                         const Places* next, AttentionScratch<T>& s) {
    const int64_t dim = p.head_dim;
    const int rows = item.count * item.group, n = places.count, whole = (n + TILE - 1) / TILE * TILE;
    const int first = base > item.position ? int(base - item.position) * item.group : 0;
    const bool many = sizeof(T) < 4 && rows - first > MANY;
    const int together = many ? 1 : item.together;
    if (next) ask_for(p, *next);
    for (int i = 0; i < item.together; i += together) {
        const T *keys[POSITIONS], *values[POSITIONS];
        for (int j = 0; j < whole; j++) {  // the scores of those beyond the last are hidden
            const int64_t at = places.at[j < n ? j : 0] + i * dim;
            keys[j] = p.keys + at;
            values[j] = p.values + at;
        }
        AttentionState<T>* heads = s.heads + i;
        if (many)
            score_heads(widen_rows(keys, whole, dim, s), n, first, rows, dim, heads, together);
        else
            score_heads(keys, n, first, rows, dim, heads, together);
        for (int k = 0; k < together; k++) softmax_rows(p, item, base, first, heads[k]);
        if (many)
            sum_heads(widen_rows(values, n, dim, s), n, POSITIONS, first, rows, dim, heads, together);
        else
            sum_heads(values, n, TILE, first, rows, dim, heads, together);
    }
}

template <class T>
inline void write_rows(const Attention<T>& p, const AttentionItem& item, const AttentionState<T>& state) {
    for (int r = 0; r < item.count * item.group; r++) {
        T* out = p.out + (item.first + r / item.group) * p.out_row + (item.head + r % item.group) * p.out_head;
        const V total = set1(state.total[r]);
        for (int64_t d = 0; d < p.head_dim; d += WORD<T>) {
            V parts[PARTS<T>];
            for (int i = 0; i < PARTS<T>; i++) parts[i] = div(load(state.sums + r * p.head_dim + d + i * LANES), total);
            put_word(out + d, parts);
        }
    }
}

}  // namespace semipd
