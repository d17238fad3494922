// x @ weight.T over packed panels, for any number of rows. Threads take panels: some at a time for few rows, one or a part of
// one for many. Each weight is read from memory once for a call (with AMX for each 512 rows), and stays in a cache for the
// blocks of rows that follow. A gated product takes two panels together, of the gate and of the up, and writes
// silu(gate) * up: with the bits of the product and then `silu_mul`.
#pragma once
#include "few.h"

namespace semipd {

template <class T>
struct Linear {
    const T* x;
    int64_t ldx, rows, K;
    const T* w;
    int64_t N;
    const T* bias;
    void* out;
    int64_t ldo;
    bool out_float;
    bool gated;  // the second half of the panels belongs to the first, and out is as wide as one
};

// Rows for which a panel is worth being read by another thread, too.
constexpr int64_t LEAST_PART = 48;

// Elements of a panel: pairs of bfloat16 are padded to whole AMX tiles of 32.
inline int64_t panel_size(const float*, int64_t K) { return K * PANEL; }
inline int64_t panel_size(const bf16*, int64_t K) { return (K + 31) / 32 * 32 * PANEL; }

// Elements from a panel of the gate to that of the up.
template <class T>
inline int64_t to_up(const Linear<T>& p) {
    return p.gated ? p.N / (2 * PANEL) * panel_size(p.w, p.K) : 0;
}

// Of rows first .. first + count - 1 that panel's columns of both, whole panels.
template <class T>
inline void finish_gated(const Linear<T>& p, int64_t panel, int64_t first, int64_t count, const float* gate,
                         const float* up) {
    const int64_t column = panel * PANEL;
    for (int64_t r = 0; r < count; r++, gate += PANEL, up += PANEL)
        for (int64_t c = 0; c < PANEL; c += LANES) {
            V g = load(gate + c), u = load(up + c);
            if (p.bias) g = add(g, load(p.bias + column + c)), u = add(u, load(p.bias + p.N / 2 + column + c));
            store((T*)p.out + (first + r) * p.ldo + column + c, gated(rounded<T>(g), rounded<T>(u)));
        }
}

// Add the bias, round once, and write the panel's columns of rows first .. first + count - 1.
template <class T>
inline void finish(const Linear<T>& p, int64_t panel, int64_t first, int64_t count, const float* sums) {
    int64_t column = panel * PANEL, width = p.N - column < PANEL ? p.N - column : PANEL;
    for (int64_t r = 0; r < count; r++, sums += PANEL)
        for (int64_t c = 0; c < width; c += LANES) {
            V value = load(sums + c);
            int n = int(width - c < LANES ? width - c : LANES);
            if (p.bias) value = add(value, load(p.bias + column + c, n));
            int64_t at = (first + r) * p.ldo + column + c;
            if (p.out_float)
                store((float*)p.out + at, value, n);
            else
                store((T*)p.out + at, value, n);
        }
}

// Few rows, panels first .. last - 1, of which a gated product has two each: at most STREAMS in all.
template <class T>
inline void linear_few(const Linear<T>& p, int64_t first, int64_t last) {
    const int count = int(p.rows), n = int(last - first);
    const T *rows[FEW], *panels[STREAMS];
    for (int r = 0; r < count; r++) rows[r] = p.x + r * p.ldx;
    for (int i = 0; i < n; i++) {
        panels[i] = p.w + (first + i) * panel_size(p.w, p.K);
        if (p.gated) panels[n + i] = panels[i] + to_up(p);
    }
    alignas(64) float sums[STREAMS * FEW * PANEL];
    few_sums(rows, count, panels, p.gated ? 2 * n : n, p.K, sums);
    for (int i = 0; i < n; i++) {
        const float* of = sums + i * count * PANEL;
        if (p.gated)
            finish_gated(p, first + i, 0, count, of, of + n * count * PANEL);
        else
            finish(p, first + i, 0, count, of);
    }
}

// Of rows begin .. end - 1.
template <class T>
inline void linear_panel(const Linear<T>& p, int64_t panel, int64_t begin, int64_t end) {
    using D = typename DotOf<T>::type;
    const T* w = p.w + panel * panel_size(p.w, p.K);
    const int64_t blocks = blocks_of<D>(end - begin);
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = begin + (end - begin) * b / blocks, count = begin + (end - begin) * (b + 1) / blocks - first;
        const T* rows[TALL];
        for (int64_t r = 0; r < count; r++) rows[r] = p.x + (first + r) * p.ldx;
        alignas(64) float sums[TALL * PANEL], ups[TALL * PANEL];
        panel_sums<D>(rows, int(count), w, p.K, sums, b == 0);
        if (p.gated) {
            panel_sums<D>(rows, int(count), w + to_up(p), p.K, ups, b == 0);
            finish_gated(p, panel, first, count, sums, ups);
        } else {
            finish(p, panel, first, count, sums);
        }
    }
}

}  // namespace semipd

#if defined(__AMX_BF16__)
#include "amx.h"
#endif

namespace semipd {

template <class T>
inline void linear(const Linear<T>& p, int64_t first_panel, int64_t last_panel) {
    if (p.rows <= 0) return;
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) return amx_linear(p, first_panel, last_panel);
#endif
    const int64_t panels = last_panel - first_panel;
    if (p.rows <= FEW) {
        const int64_t items = parts_of(panels, p.gated ? STREAMS / 2 : STREAMS);
        return parallel(items, 2, [&](auto next) {
            for (int64_t item = next(); item >= 0; item = next())
                linear_few(p, first_panel + panels * item / items, first_panel + panels * (item + 1) / items);
        });
    }
    // Nine panels are five for one thread and four for the other, who waits: a prompt's are shared by rows, too.
    const int64_t parts = p.rows < 2 * LEAST_PART ? 1 : p.rows < 4 * LEAST_PART ? 2 : 4;
    parallel(panels * parts, 2, [&](auto next) {
        for (int64_t item = next(); item >= 0; item = next()) {
            const int64_t part = item % parts;
            linear_panel(p, first_panel + item / parts, p.rows * part / parts, p.rows * (part + 1) / parts);
        }
    });
}

}  // namespace semipd
