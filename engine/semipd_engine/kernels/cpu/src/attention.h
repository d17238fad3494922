// Causal attention straight over the paged cache, decode rows and chunks alike. Online softmax over blocks of 64 absolute
// positions, in float32: a row's bits depend on its own sequence alone. Threads take (sequence, KV head, some rows); of a
// decode row several KV heads at once, so that what is read lies side by side.
#pragma once
#include "parallel.h"
#if defined(__AVX512F__)
#include "attention_panel.h"
#else
#include "attention_lanes.h"
#endif

namespace semipd {

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
        attend_heads(p, item, base, places, next, s);
    });
    for (int i = 0; i < item.together; i++) write_rows(p, item.of_head(i), s.heads[i]);
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
