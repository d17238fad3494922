// Threads: torch's own pool, through two C symbols that the caller hands in. So its pinning and set_num_threads hold.
// Items are taken one by one from a counter; who computes an item never changes its bits.
//
// Waking a pool costs some 20 us, a small kernel 2. So a list of calls runs as a team: the pool is woken once, every
// thread goes through the whole list, and `parallel` shares each call's items and meets at its end. A thread that waits
// there spins for at most some 200 us and then sleeps: in a virtual machine a wake-up costs as much as a call.
#pragma once
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

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

class Team {
  public:
    explicit Team(int size) : size_(size) {}
    int size() const { return size_; }

    // The next item of a thread's call-th call. A counter is used again two calls later, and cleared in between.
    int64_t take(int64_t call) { return __atomic_fetch_add(&taken_[call % 2].value, 1, __ATOMIC_RELAXED); }

    // Until all have come. The last one clears the counter of the next call, which nobody uses now.
    void meet(int64_t call) {
        const uint32_t round = __atomic_load_n(&round_, __ATOMIC_RELAXED);
        if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == size_) {
            __atomic_store_n(&taken_[(call + 1) % 2].value, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&round_, round + 1, __ATOMIC_SEQ_CST);
            if (__atomic_load_n(&asleep_, __ATOMIC_SEQ_CST)) futex(FUTEX_WAKE_PRIVATE, INT32_MAX);
            return;
        }
        for (int spins = 0; spins < SPINS; spins++) {
            if (__atomic_load_n(&round_, __ATOMIC_ACQUIRE) != round) return;
            _mm_pause();
        }
        __atomic_add_fetch(&asleep_, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&round_, __ATOMIC_SEQ_CST) == round) futex(FUTEX_WAIT_PRIVATE, round);
        __atomic_sub_fetch(&asleep_, 1, __ATOMIC_RELAXED);
    }

  private:
    static constexpr int SPINS = 4000;
    struct alignas(64) Counter {
        int64_t value = 0;
    };
    void futex(int operation, uint32_t value) { syscall(SYS_futex, &round_, operation, value, nullptr, nullptr, 0); }
    const int size_;
    Counter taken_[2];
    alignas(64) int arrived_ = 0;
    alignas(64) uint32_t round_ = 0;
    int asleep_ = 0;
};

// Of the thread: the team whose list it goes through, its place in it, and the number of its next call.
inline thread_local Team* team = nullptr;
inline thread_local int member = 0;
inline thread_local int64_t team_call = 0;

// Threads that will share the items of the next `parallel`.
inline int workers() { return team ? team->size() : threads(); }

// fn(next) runs once in each thread and calls next() for items until it answers -1.
template <class F>
void parallel(int64_t items, int64_t least_to_share, const F& fn) {
    if (team) {
        const int64_t call = team_call++;
        if (items >= least_to_share || member == 0)
            fn([call, items]() -> int64_t {
                int64_t item = team->take(call);
                return item < items ? item : -1;
            });
        team->meet(call);
        return;
    }
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

// Does the pool really give each of `size` bodies a thread of its own? A team of fewer would wait for ever. Asked once
// for each size, of which there are few: the pool keeps to what it did.
inline bool team_of(int size) {
    enum Answer : uint8_t { UNKNOWN, ABLE, UNABLE };
    constexpr int MOST = 256;
    static Answer answers[MOST + 1];
    if (size > MOST) return false;
    if (answers[size] == UNKNOWN) {
        int bodies = 0;
        parallel_for(
            0, size, 1, [](int64_t, int64_t, void* context) { __atomic_add_fetch((int*)context, 1, __ATOMIC_SEQ_CST); },
            &bodies);
        answers[size] = bodies == size ? ABLE : UNABLE;
    }
    return answers[size] == ABLE;
}

// work() in every thread of the pool, as one team. Called by one thread of the process at a time.
template <class F>
void as_team(const F& work) {
    const int size = threads();
    if (size <= 1 || !parallel_for || team || !team_of(size)) return work();
    struct Shared {
        const F& work;
        Team team;
        int joined;
    } shared{work, Team(size), 0};
    auto run = [](int64_t, int64_t, void* context) {
        Shared& s = *static_cast<Shared*>(context);
        member = __atomic_fetch_add(&s.joined, 1, __ATOMIC_SEQ_CST);
        team = &s.team;
        team_call = 0;
        s.work();
        team = nullptr;
    };
    parallel_for(0, size, 1, run, &shared);
}

// A thread's memory for one use. All of a thread's are freed with it: a pool ends threads whenever it is to have fewer.
struct Scratch {
    void* data = nullptr;
    int64_t room = 0;
    Scratch* next = nullptr;
};

inline pthread_key_t scratches_key;

inline void free_scratches(void* first) {
    for (Scratch* s = (Scratch*)first; s; s = s->next) {
        free(s->data);
        s->data = nullptr;
        s->room = 0;
    }
}

inline void grow(Scratch& s, int64_t bytes) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, [] {
        if (pthread_key_create(&scratches_key, free_scratches)) abort();
    });
    if (!s.data) {  // the first time
        s.next = (Scratch*)pthread_getspecific(scratches_key);
        if (pthread_setspecific(scratches_key, &s)) abort();
    }
    free(s.data);
    s.data = aligned_alloc(64, (size_t(bytes) + 63) / 64 * 64);
    if (!s.data) abort();
    s.room = bytes;
}

// Memory of this thread for `count` elements, kept from call to call and grown. One for each use (`Tag`). Its content is
// undefined. No standard library: any compiler's runtime will do.
template <class Tag, class T>
inline T* scratch(int64_t count) {
    static thread_local Scratch own;
    const int64_t bytes = count * int64_t(sizeof(T));
    if (bytes > own.room) grow(own, bytes);
    return (T*)own.data;
}

}  // namespace semipd
