// Latent attention, absorbed: all heads share the cached vector, whose first `rank` elements are the values as well. The
// walk is that of `attention.h`: blocks of 64 absolute positions, online softmax in float32, so a row's bits are its own.
#pragma once
#include "attention.h"
#include "rows.h"

namespace semipd {

constexpr int LATENT_ROWS = 32, LATENT_WIDTH_MAX = 640;

template <class T>
struct Latent {
    const T* q;
    int64_t q_row, q_head;
    const T* cache;
    int64_t block_size, width;
    const int32_t* tables;
    int64_t table_row;
    const int32_t *lengths, *starts;
    int64_t sequences, heads, rank;
    float scale;
    T* out;
    int64_t out_row, out_head;
    int64_t first_row, last_row;
};

// Rows first .. first + count - 1 of the batch, `group` heads from `head` on, all of one sequence.
struct LatentItem {
    int32_t sequence, first, count, head, group;
    int64_t position;
};

template <class T>
struct LatentScratch {
    alignas(64) T panel[LATENT_WIDTH_MAX * POSITIONS];
    alignas(64) float scores[LATENT_ROWS * POSITIONS];
    alignas(64) float sums[LATENT_ROWS * LATENT_WIDTH_MAX];
    float maximum[LATENT_ROWS], total[LATENT_ROWS];
    const T* entry[POSITIONS];
    static void start() {}
    static void stop() {}
};

// What a thread attends with.
template <class T>
struct LatentScratchOf {
    using type = LatentScratch<T>;
};

template <class T>
inline void begin_latent(const Latent<T>& p, const LatentItem& item, LatentScratch<T>& s) {
    const int rows = item.count * item.group;
    for (int r = 0; r < rows; r++) {
        s.maximum[r] = -INFINITY;
        s.total[r] = 0;
    }
    memset(s.sums, 0, size_t(rows * p.rank) * 4);
}

// Of the positions from `base` on that the item sees, the n entries.
template <class T>
inline void attend_latent_block(const Latent<T>& p, const LatentItem& item, int64_t base, int n, LatentScratch<T>& s) {
    using D = typename DotOf<T>::type;
    const int64_t rank = p.rank;
    const int rows = item.count * item.group;
    key_panel(s.entry, n, p.width, s.panel);
    const int skipped = base > item.position ? int(base - item.position) * item.group : 0;
    const int most = together<D>(rows - skipped);
    for (int r = skipped; r < rows; r += most) {
        const int some = rows - r < most ? rows - r : most;
        const T* queries[TALL];
        for (int i = 0; i < some; i++)
            queries[i] = p.q + (item.first + (r + i) / item.group) * p.q_row + (item.head + (r + i) % item.group) * p.q_head;
        panel_sums<D>(queries, some, s.panel, p.width, s.scores + r * POSITIONS, false);
    }
    for (int r = skipped; r < rows; r++) {
        const int64_t seen = item.position + r / item.group + 1 - base;
        float factor = softmax_block(s.scores + r * POSITIONS, 0, int(seen < POSITIONS ? seen : POSITIONS), p.scale,
                                     s.maximum[r], s.total[r]);
        rescale(s.sums + r * rank, factor, rank);
    }
    add_rows<T>(s.scores, s.entry, n, skipped, rows, s.sums, rank);
}

#if defined(__AMX_BF16__)
}  // namespace semipd
#include "latent_amx.h"
namespace semipd {
#endif

template <class T, class Scratch>
inline void attend_latent(const Latent<T>& p, const LatentItem& item, Scratch& s) {
    begin_latent(p, item, s);
    const int32_t* table = p.tables + item.sequence * p.table_row;
    const int64_t context = item.position + item.count;
    for (int64_t base = 0; base < context; base += POSITIONS) {
        const int n = int(context - base < POSITIONS ? context - base : POSITIONS);
        for (int j = 0; j < n; j++) {
            const int64_t at = base + j;
            s.entry[j] = p.cache + (table[at / p.block_size] * p.block_size + at % p.block_size) * p.width;
        }
        attend_latent_block(p, item, base, n, s);
    }
    for (int r = 0; r < item.count * item.group; r++) {
        T* out = p.out + (item.first + r / item.group) * p.out_row + (item.head + r % item.group) * p.out_head;
        const float* sums = s.sums + r * p.rank;
        for (int64_t d = 0; d < p.rank; d += LANES) store(out + d, div(load(sums + d), set1(s.total[r])));
    }
}

template <class T>
inline void latent_attention(const Latent<T>& p) {
    int64_t asked = 0;
    for (int64_t i = 0; i < p.sequences; i++) asked += p.starts[i + 1] > p.starts[i];
    // The heads of a row share the entries; they are cut only where there would be nothing for a thread to do.
    int64_t group = p.heads < LATENT_ROWS ? p.heads : LATENT_ROWS;
    while (group > 1 && asked * ((p.heads + group - 1) / group) < workers()) group = (group + 1) / 2;
    const int64_t most = LATENT_ROWS / group, cuts = (p.heads + group - 1) / group;
    int64_t room = 0, count = 0;
    for (int64_t i = 0; i < p.sequences; i++) room += ((p.starts[i + 1] - p.starts[i] + most - 1) / most) * cuts;
    LatentItem* items = scratch<struct LatentItems, LatentItem>(room);
    for (int64_t i = p.sequences; i-- > 0;) {
        const int64_t start = p.starts[i], end = p.starts[i + 1];
        const int64_t first = start > p.first_row ? start : p.first_row, last = end < p.last_row ? end : p.last_row;
        for (int64_t stop = last; stop > first;) {  // later rows see more: they go first
            const int64_t begin = stop - most > first ? stop - most : first;
            for (int64_t head = 0; head < p.heads; head += group)
                items[count++] = {int32_t(i),    int32_t(begin), int32_t(stop - begin),
                                  int32_t(head), int32_t(p.heads - head < group ? p.heads - head : group),
                                  p.lengths[i] - (end - begin)};
            stop = begin;
        }
    }
    parallel(count, 2, [&](auto next) {
        auto* own = scratch<struct LatentRoom, typename LatentScratchOf<T>::type>(1);
        own->start();
        for (int64_t item = next(); item >= 0; item = next()) attend_latent(p, items[item], *own);
        own->stop();
    });
}

template <class T>
struct LatentRope {
    const T* q;
    int64_t q_row, q_head;
    const T* kv;
    int64_t kv_row, rows, heads, nope, rank, half;
    const float *cos, *sin;
    int64_t angles_row;
    const int32_t* slots;
    const T* norm;
    float eps;
    T *cache, *out;
    int64_t out_row, out_head;
};

template <class T>
inline void latent_rope_write(const LatentRope<T>& p) {
    each_row(p.rows, 2 * p.half * p.heads + p.rank, [&](int64_t row) {
        const float *cos = p.cos + row * p.angles_row, *sin = p.sin + row * p.angles_row;
        for (int64_t h = 0; h < p.heads; h++)
            rotate_row(p.q + row * p.q_row + h * p.q_head + p.nope, cos, sin, p.half, 2 * p.half,
                       p.out + row * p.out_row + h * p.out_head + p.rank);
        if (p.slots[row] < 0) return;
        const T* kv = p.kv + row * p.kv_row;
        T* entry = p.cache + p.slots[row] * (p.rank + 2 * p.half);
        norm_row(kv, p.norm, p.eps, p.rank, entry);
        rotate_row(kv + p.rank, cos, sin, p.half, 2 * p.half, entry + p.rank);
    });
}

}  // namespace semipd
