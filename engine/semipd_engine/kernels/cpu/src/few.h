// Sums of several panels for few rows, which memory bounds. A core that reads one stream waits for it: its fetchers run
// ahead within a page, and not far. Four panels, piece by piece in turn, are four streams: on a Xeon of the Sapphire Rapids
// generation one core then reads 1.3 times as fast, and two 1.2 times.
#pragma once
#include "parallel.h"
#include "tall.h"

namespace semipd {

// Panels side by side, at most.
constexpr int STREAMS = 4;
// Rows, at most: more are bound by arithmetic, and take a panel at a time.
constexpr int FEW = LANES == 16 ? LEAST_TALL - 1 : 6;
// Bytes of a panel before the next one's turn.
constexpr int64_t PIECE = 1024;

template <class D>
inline void few_pieces(const typename D::X* const* rows, int count, const typename D::T* const* panels, int streams, int64_t K,
                       float* sums) {
    constexpr int64_t STEP = PIECE / (PANEL * int64_t(sizeof(typename D::T)));
    const int blocks = (count + D::ROWS - 1) / D::ROWS;
    for (int64_t from = 0; from < K; from += STEP) {
        const int64_t to = K - from < STEP ? K : from + STEP;
        for (int s = 0; s < streams; s++)
            for (int b = 0; b < blocks; b++) {
                const int first = count * b / blocks, n = count * (b + 1) / blocks - first;
                dot_panel<D>(rows + first, n, panels[s], from, to, sums + (s * count + first) * PANEL, b == 0);
            }
    }
}

#if defined(__AVX512BF16__)
// The same by float32 arithmetic: rows are widened once for all panels, and a panel in registers.
inline void few_wide(const bf16* const* rows, int count, const bf16* const* panels, int streams, int64_t K, float* sums) {
    float* wide = scratch<struct WideRows, float>(count * K);
    const float* widened[FEW];
    for (int r = 0; r < count; r++) {
        float* to = wide + r * K;
        widened[r] = to;
        for (int64_t k = 0; k < K; k += LANES) {
            const int n = int(K - k < LANES ? K - k : LANES);
            store(to + k, load(rows[r] + k, n), n);
        }
    }
    flushing([=, &widened] { few_pieces<DotWide>(widened, count, panels, streams, K, sums); });
}
#endif

// At most FEW rows and STREAMS panels. sums: float32 [panels][count][64], with the bits of `panel_sums` of each by itself.
template <class T>
inline void few_sums(const T* const* rows, int count, const T* const* panels, int streams, int64_t K, float* sums) {
#if defined(__AVX512BF16__)
    if constexpr (sizeof(T) == 2)
        if (use_wide && count > 1) return few_wide(rows, count, panels, streams, K, sums);
#endif
    few_pieces<typename DotOf<T>::type>(rows, count, panels, streams, K, sums);
}

// Into how many parts of about one size, and of at most `most`, threads share so many panels. As many parts for each
// thread: with one left over, the others would wait for it.
inline int64_t parts_of(int64_t panels, int64_t most) {
    const int64_t team = workers(), parts = team * ((panels + team * most - 1) / (team * most));
    return parts < panels ? parts : panels;
}

}  // namespace semipd
