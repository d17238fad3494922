// Causal attention straight over the paged cache, decode rows and chunks alike. Online softmax over blocks of 64 absolute
// positions, in float32: a row's bits depend on its own sequence alone. Threads take (sequence, KV head, some rows); of a
// decode row several KV heads at once, so that what is read lies side by side.
#pragma once
#include "parallel.h"
#include "tile.h"

namespace semipd {

constexpr int POSITIONS = 64, QUERY_ROWS = 48, HEAD_DIM_MAX = 256, TOGETHER = 8;

template <class T>
struct Attention {
    const T* q;
    int64_t q_row, q_head;
    const T *keys, *values;
    int64_t block_size, width;
    const int32_t* tables;
    int64_t table_row;
    const int32_t *lengths, *starts;
    int64_t sequences, heads, kv_heads, head_dim;
    float scale;
    T* out;
    int64_t out_row, out_head;
    int64_t first_row, last_row, window;
};

// Rows first .. first + count - 1 of the batch, `group` query heads from `head` on, all of one sequence and KV head; the
// same for as many KV heads behind it as make `together`.
struct AttentionItem {
    int32_t sequence, first, count, head, group, kv_head, together;
    int64_t position;

    AttentionItem of_head(int i) const {
        AttentionItem one = *this;
        one.head += i * group;
        one.kv_head += i;
        one.together = 1;
        return one;
    }
};

// Have a line in the second-level cache soon. Cores that were measured without AMX (Zen 5) fetch ahead of loads in the order
// of addresses, and not of prefetches: a decode row of 2,000 positions takes 0.87 of the time. With AMX it was not measured.
inline void touch(const void* line) {
#if defined(__AMX_BF16__)
    _mm_prefetch((const char*)line, _MM_HINT_T1);
#else
    (void)*(const volatile int32_t*)line;
#endif
}

// Where a block of positions lies for an item's first KV head, as offsets into both caches.
struct Places {
    int count, together;
    int64_t at[POSITIONS];

    template <class T>
    Places(const Attention<T>& p, const AttentionItem& item, int64_t base) {
        const int32_t* table = p.tables + item.sequence * p.table_row;
        const int64_t context = item.position + item.count, head = item.kv_head * p.head_dim;
        count = int(context - base < POSITIONS ? context - base : POSITIONS);
        together = item.together;
        int64_t block = base / p.block_size, inside = base % p.block_size;
        for (int j = 0; j < count; j++, inside++) {
            if (inside == p.block_size) block++, inside = 0;
            at[j] = (table[block] * p.block_size + inside) * p.width + head;
        }
    }

    // A few lines of each position, in blocks that lie anywhere: no pattern that the hardware would foresee. Part `part`
    // of `parts`, so that the rest can be fetched while something is computed.
    template <class T>
    void fetch(const Attention<T>& p, int part, int parts) const {
        const T* const caches[] = {p.keys, p.values};
        for (const T* cache : caches)
            for (int j = count * part / parts; j < count * (part + 1) / parts; j++)
                for (int64_t d = 0; d < together * p.head_dim; d += 64 / int64_t(sizeof(T)))
                    touch(cache + at[j] + d);
    }
};

// The first position whose block the item sees something of.
template <class T>
inline int64_t first_block(const Attention<T>& p, const AttentionItem& item) {
    return p.window && item.position + 1 > p.window ? (item.position + 1 - p.window) / POSITIONS * POSITIONS : 0;
}

template <class T>
inline void write_rows(const Attention<T>& p, const AttentionItem& item, const float* sums, const float* total) {
    for (int r = 0; r < item.count * item.group; r++) {
        T* out = p.out + (item.first + r / item.group) * p.out_row + (item.head + r % item.group) * p.out_head;
        const float* row = sums + r * p.head_dim;
        for (int64_t d = 0; d < p.head_dim; d += LANES) store(out + d, div(load(row + d), set1(total[r])));
    }
}

// What a thread keeps of the rows of one KV head from block to block, and what it needs for a block.
template <class T>
struct AttentionState {
    alignas(64) float sums[QUERY_ROWS * HEAD_DIM_MAX];
    alignas(64) T queries[QUERY_ROWS * HEAD_DIM_MAX];
    float maximum[QUERY_ROWS], total[QUERY_ROWS];
};

template <class T>
struct AttentionScratch {
    static constexpr int ROWS = QUERY_ROWS;
    alignas(64) T panel[HEAD_DIM_MAX * POSITIONS];
    alignas(64) float scores[QUERY_ROWS * POSITIONS];
    AttentionState<T> heads[TOGETHER];
    static void start() {}
    static void stop() {}
};

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

// fn(base, places, next) for each block of positions that the item sees; `next` is to be fetched meanwhile. Behind the
// last it is the first of the item that `follow` answers, or null. It is asked then and not before: of two items for two
// threads the first thread would have both.
template <class T, class N, class F>
inline void each_block(const Attention<T>& p, const AttentionItem& item, const N& follow, const F& fn) {
    const int64_t context = item.position + item.count;
    int64_t base = first_block(p, item);
    for (Places here(p, item, base);;) {
        const bool last = base + POSITIONS >= context;
        const AttentionItem* following = last ? follow() : &item;
        if (!following) return fn(base, here, nullptr);
        const AttentionItem& then = *following;
        const Places next(p, then, last ? first_block(p, then) : base + POSITIONS);
        fn(base, here, &next);
        if (last) return;
        here = next;
        base += POSITIONS;
    }
}

template <class T>
inline void begin_rows(const Attention<T>& p, const AttentionItem& item, AttentionState<T>& state) {
    const int rows = item.count * item.group;
    for (int r = 0; r < rows; r++) {
        const T* q = p.q + (item.first + r / item.group) * p.q_row + (item.head + r % item.group) * p.q_head;
        memcpy(state.queries + r * p.head_dim, q, size_t(p.head_dim) * sizeof(T));
        state.maximum[r] = -INFINITY;
        state.total[r] = 0;
    }
    memset(state.sums, 0, size_t(rows * p.head_dim) * 4);
}

template <class T>
inline void attend_block(const Attention<T>& p, const AttentionItem& item, int64_t base, const T* const* keys,
                         const T* const* values, int n, AttentionScratch<T>& s, AttentionState<T>& state) {
    using D = typename DotOf<T>::type;
    const int64_t dim = p.head_dim;
    const int rows = item.count * item.group;
    key_panel(keys, n, dim, s.panel);
    const int skipped = base > item.position ? int(base - item.position) * item.group : 0;
    for (int r = skipped; r < rows; r += D::ROWS) {
        const int some = rows - r < D::ROWS ? rows - r : D::ROWS;
        const T* queries[D::ROWS];
        for (int i = 0; i < some; i++) queries[i] = state.queries + (r + i) * dim;
        dot_panel<D>(queries, some, s.panel, dim, s.scores + r * POSITIONS, false);
    }
    for (int r = skipped; r < rows; r++) {
        const int64_t position = item.position + r / item.group;
        const int high = int(position + 1 - base < POSITIONS ? position + 1 - base : POSITIONS);
        const int64_t start = p.window ? position + 1 - p.window - base : 0;
        const int low = start > POSITIONS ? POSITIONS : start > 0 ? int(start) : 0;
        float factor = softmax_block(s.scores + r * POSITIONS, low, high, p.scale, state.maximum[r], state.total[r]);
        rescale(state.sums + r * dim, factor, dim);
    }
    add_rows(s.scores, values, n, skipped, rows, state.sums, dim);
}

// What a thread attends with.
template <class T>
struct ScratchOf {
    using type = AttentionScratch<T>;
};

#if defined(__AMX_BF16__)
}  // namespace semipd
#include "attention_amx.h"
namespace semipd {
#endif

template <class T, class N, class Scratch>
inline void attend(const Attention<T>& p, const AttentionItem& item, const N& follow, Scratch& s) {
    for (int i = 0; i < item.together; i++) begin_rows(p, item.of_head(i), s.heads[i]);
    each_block(p, item, follow, [&](int64_t base, const Places& places, const Places* next) {
        const T *keys[POSITIONS], *values[POSITIONS];
        for (int i = 0; i < item.together; i++) {
            for (int j = 0; j < places.count; j++) {
                keys[j] = p.keys + places.at[j] + i * p.head_dim;
                values[j] = p.values + places.at[j] + i * p.head_dim;
            }
            if (next) next->fetch(p, i, item.together);
            attend_block(p, item.of_head(i), base, keys, values, places.count, s, s.heads[i]);
        }
    });
    for (int i = 0; i < item.together; i++) write_rows(p, item.of_head(i), s.heads[i].sums, s.heads[i].total);
}

template <class T>
inline void attention(const Attention<T>& p) {
    using Scratch = typename ScratchOf<T>::type;
    const int64_t ratio = p.heads / p.kv_heads;
    int64_t asked = 0;
    for (int64_t i = 0; i < p.sequences; i++) asked += p.starts[i + 1] > p.starts[i];
    // A group of query heads shares the keys; it is cut only where there would be nothing for a thread to do.
    int64_t group = ratio < Scratch::ROWS ? ratio : Scratch::ROWS;
    while (group > 1 && asked * p.kv_heads * (ratio / group) < workers()) group = (group + 1) / 2;
    const int64_t most = Scratch::ROWS / group;
    int64_t together = group == ratio ? (p.kv_heads < TOGETHER ? p.kv_heads : TOGETHER) : 1;
    while (together > 1 && asked * ((p.kv_heads + together - 1) / together) < workers()) together = (together + 1) / 2;
    const int64_t per_sequence = p.kv_heads * ((ratio + group - 1) / group);
    int64_t room = 0, count = 0;
    for (int64_t i = 0; i < p.sequences; i++) room += ((p.starts[i + 1] - p.starts[i] + most - 1) / most) * per_sequence;
    AttentionItem* items = scratch<struct AttentionItems, AttentionItem>(room);
    for (int64_t i = p.sequences; i-- > 0;) {
        const int64_t start = p.starts[i], end = p.starts[i + 1];
        const int64_t first = start > p.first_row ? start : p.first_row, last = end < p.last_row ? end : p.last_row;
        for (int64_t stop = last; stop > first;) {  // later rows see more: they go first
            const int64_t begin = stop - most > first ? stop - most : first;
            const int64_t step = stop - begin == 1 ? together : 1;
            for (int64_t kv = 0; kv < p.kv_heads; kv += step)
                for (int64_t g = 0; g < ratio; g += group)
                    items[count++] = {int32_t(i), int32_t(begin), int32_t(stop - begin), int32_t(kv * ratio + g),
                                      int32_t(ratio - g < group ? ratio - g : group), int32_t(kv),
                                      int32_t(p.kv_heads - kv < step ? p.kv_heads - kv : step),
                                      p.lengths[i] - (end - begin)};
            stop = begin;
        }
    }
    parallel(count, 2, [&](auto next) {
        auto* own = scratch<struct AttentionRoom, Scratch>(1);
        own->start();
        auto take = [&]() -> const AttentionItem* {
            const int64_t item = next();
            return item < 0 ? nullptr : items + item;
        };
        for (const AttentionItem *item = take(), *following; item; item = following)
            attend(p, *item, [&] { return following = take(); }, *own);
        own->stop();
    });
}

}  // namespace semipd
