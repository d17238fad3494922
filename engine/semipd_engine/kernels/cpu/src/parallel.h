// Threads: torch's own pool, through two C symbols that the caller hands in. So its pinning and set_num_threads hold.
// Items are taken one by one from a counter; who computes an item never changes its bits.
#pragma once
#include <stdint.h>
#include <stdlib.h>

namespace semipd {

using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
using ThreadCount = int32_t (*)(uint32_t* count);

inline ParallelFor parallel_for = nullptr;
inline ThreadCount thread_count = nullptr;

inline int threads() {
    uint32_t count = 1;
    if (thread_count) thread_count(&count);
    return int(count);
}

// fn(next) runs once in each thread and calls next() for items until it answers -1.
template <class F>
void parallel(int64_t items, int64_t least_to_share, const F& fn) {
    struct Shared {
        const F& fn;
        int64_t taken;
        int64_t items;
    } shared{fn, 0, items};
    auto run = [](int64_t, int64_t, void* context) {
        Shared& s = *static_cast<Shared*>(context);
        auto next = [&s]() -> int64_t {
            int64_t item = __atomic_fetch_add(&s.taken, 1, __ATOMIC_RELAXED);
            return item < s.items ? item : -1;
        };
        s.fn(next);
    };
    int64_t count = items < least_to_share ? 1 : items < threads() ? items : threads();
    if (count <= 1 || !parallel_for)
        run(0, 1, &shared);
    else
        parallel_for(0, count, 1, run, &shared);
}

// Memory of this thread for `count` elements, kept from call to call and grown. One for each use (`Tag`). Its content is
// undefined. No standard library: any compiler's runtime will do.
template <class Tag, class T>
inline T* scratch(int64_t count) {
    static thread_local T* data = nullptr;
    static thread_local int64_t room = 0;
    if (count > room) {
        free(data);
        data = (T*)aligned_alloc(64, (size_t(count) * sizeof(T) + 63) / 64 * 64);
        if (!data) abort();
        room = count;
    }
    return data;
}

}  // namespace semipd
