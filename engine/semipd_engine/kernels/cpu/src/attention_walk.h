// What attention is asked, and its way through a paged cache: blocks of 64 absolute positions, each with the places of its
// keys and values, and the next one's lines asked for meanwhile.
#pragma once
#include "simd.h"

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

}  // namespace semipd
