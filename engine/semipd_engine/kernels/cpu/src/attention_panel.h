// Attention with 16 lanes: a block's keys are transposed once into a panel, as a product's weights lie, for all rows that
// share them.
#pragma once
#include "attention_block.h"
#include "tall.h"

namespace semipd {

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
    const int most = together<D>(rows - skipped);
    for (int r = skipped; r < rows; r += most) {
        const int some = rows - r < most ? rows - r : most;
        const T* queries[TALL];
        for (int i = 0; i < some; i++) queries[i] = state.queries + (r + i) * dim;
        panel_sums<D>(queries, some, s.panel, dim, s.scores + r * POSITIONS, false);
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

// A block for each of the item's KV heads.
template <class T, class Scratch>
inline void attend_heads(const Attention<T>& p, const AttentionItem& item, int64_t base, const Places& places,
                         const Places* next, Scratch& s) {
    for (int i = 0; i < item.together; i++) {
        const T *keys[POSITIONS], *values[POSITIONS];
        for (int j = 0; j < places.count; j++) {
            keys[j] = p.keys + places.at[j] + i * p.head_dim;
            values[j] = p.values + places.at[j] + i * p.head_dim;
        }
        if (next) next->fetch(p, i, item.together);
        attend_block(p, item.of_head(i), base, keys, values, places.count, s, s.heads[i]);
    }
}

template <class T, class State>
inline void write_rows(const Attention<T>& p, const AttentionItem& item, const State& state) {
    for (int r = 0; r < item.count * item.group; r++) {
        T* out = p.out + (item.first + r / item.group) * p.out_row + (item.head + r % item.group) * p.out_head;
        const float* row = state.sums + r * p.head_dim;
        for (int64_t d = 0; d < p.head_dim; d += LANES) store(out + d, div(load(row + d), set1(state.total[r])));
    }
}

}  // namespace semipd
