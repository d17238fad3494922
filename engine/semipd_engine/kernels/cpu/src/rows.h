// What is done to each row by itself: norms, SiLU * mul, rotation with the write to the cache, embedding, packing.
#pragma once
#include "parallel.h"
#include "tile.h"

namespace semipd {

constexpr int64_t ELEMENTS_TO_SHARE = 1 << 14;  // below, waking a thread costs more than it helps

template <class F>
inline void each_row(int64_t rows, int64_t width, const F& fn) {
    int64_t step = width > 0 ? (4096 + width - 1) / width : 1, items = (rows + step - 1) / step;
    parallel(items, rows * width < ELEMENTS_TO_SHARE ? items + 1 : 2, [&](auto next) {
        for (int64_t item = next(); item >= 0; item = next())
            for (int64_t row = item * step; row < rows && row < (item + 1) * step; row++) fn(row);
    });
}

// fn(i, load, store) for each vector of a row, whole ones without a mask.
template <class F>
inline void each_vector(int64_t width, const F& fn) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
        fn(i, [](auto p) { return load(p); }, [](auto p, V x) { store(p, x); });
    const int n = int(width - i);
    if (n > 0) fn(i, [n](auto p) { return load(p, n); }, [n](auto p, V x) { store(p, x, n); });
}

// out = x / sqrt(mean(x * x) + eps) * weight; `out` may be `x`. With a residual, residual += x comes first and counts.
template <class T>
inline void norm_row(const T* x, const T* weight, float eps, int64_t width, T* out, T* residual = nullptr) {
    const T* from = residual ? residual : x;
    V squares = zero();
    each_vector(width, [&](int64_t i, auto get, auto put) {
        V v = get(from + i);
        if (residual) {
            v = rounded<T>(add(v, get(x + i)));
            put(residual + i, v);
        }
        squares = fma(v, v, squares);
    });
    const V inverse = set1(1.0f / sqrtf(sum(squares) / float(width) + eps));
    each_vector(width, [&](int64_t i, auto get, auto put) {
        put(out + i, mul(rounded<T>(mul(get(from + i), inverse)), get(weight + i)));
    });
}

template <class T>
inline void rms_norm(const T* x, int64_t ldx, const T* weight, float eps, T* residual, int64_t ldr, T* out, int64_t ldo,
                     int64_t rows, int64_t width) {
    each_row(rows, width, [&](int64_t row) {
        norm_row(x + row * ldx, weight, eps, width, out + row * ldo, residual ? residual + row * ldr : nullptr);
    });
}

template <class T>
inline void silu_mul(const T* x, int64_t ldx, T* out, int64_t ldo, int64_t rows, int64_t width) {
    each_row(rows, 2 * width, [&](int64_t row) {
        const T* gate = x + row * ldx;
        for (int64_t i = 0; i < width; i += LANES) {
            int n = int(width - i);
            store(out + row * ldo + i, gated(load(gate + i, n), load(gate + width + i, n)), n);
        }
    });
}

// x[0 .. rotary) turned in pairs (i, i + half); the rest copied. `out` may be `x`.
template <class T>
inline void rotate_row(const T* x, const float* cos, const float* sin, int64_t half, int64_t dim, T* out) {
    for (int64_t i = 0; i < half; i += LANES) {
        int n = int(half - i);
        V a = load(x + i, n), b = load(x + half + i, n), c = load(cos + i, n), s = load(sin + i, n);
        store(out + i, sub(mul(a, c), mul(b, s)), n);
        store(out + half + i, add(mul(b, c), mul(a, s)), n);
    }
    if (out != x) memcpy(out + 2 * half, x + 2 * half, size_t(dim - 2 * half) * sizeof(T));
}

template <class T>
struct Rope {
    T* qkv;
    int64_t ld, rows, heads, kv_heads, dim;
    const float *cos, *sin;
    int64_t angles_row, half;
    const int32_t* slots;
    T *keys, *values;
    const T *q_norm, *k_norm;
    float eps;
};

template <class T>
inline void rope_write(const Rope<T>& p) {
    each_row(p.rows, (p.heads + 2 * p.kv_heads) * p.dim, [&](int64_t row) {
        T* q = p.qkv + row * p.ld;
        const float *cos = p.cos + row * p.angles_row, *sin = p.sin + row * p.angles_row;
        for (int64_t h = 0; h < p.heads; h++, q += p.dim) {
            if (p.q_norm) norm_row(q, p.q_norm, p.eps, p.dim, q);
            rotate_row(q, cos, sin, p.half, p.dim, q);
        }
        if (p.slots[row] < 0) return;
        const int64_t at = p.slots[row] * p.kv_heads * p.dim;
        for (int64_t h = 0; h < p.kv_heads; h++, q += p.dim) {
            if (p.k_norm) norm_row(q, p.k_norm, p.eps, p.dim, q);
            rotate_row(q, cos, sin, p.half, p.dim, p.keys + at + h * p.dim);
        }
        memcpy(p.values + at, q, size_t(p.kv_heads * p.dim) * sizeof(T));
    });
}

// Output features first .. first + rows - 1 of a packed weight, from rows of a checkpoint.
template <class T>
inline void pack_rows(const T* weight, int64_t ld, int64_t first, int64_t rows, int64_t K, T* packed) {
    constexpr int64_t STEP = 4 / sizeof(T);
    const int64_t size = panel_size(packed, K), groups = (first + rows + PANEL - 1) / PANEL - first / PANEL;
    parallel(groups, 2, [&](auto next) {
        for (int64_t item = next(); item >= 0; item = next()) {
            int64_t panel = first / PANEL + item;
            int64_t begin = panel * PANEL > first ? panel * PANEL : first;
            int64_t end = (panel + 1) * PANEL < first + rows ? (panel + 1) * PANEL : first + rows;
            for (int64_t k = 0; k < K; k += STEP)
                for (int64_t row = begin; row < end; row++)
                    memcpy(packed + panel * size + (k * PANEL + (row - panel * PANEL) * STEP),
                           weight + (row - first) * ld + k, size_t(K - k < STEP ? K - k : STEP) * sizeof(T));
        }
    });
}

template <class T>
inline void embedding(const int32_t* ids, int64_t count, const T* weight, int64_t K, bool panels, T* out, int64_t ldo) {
    constexpr int64_t STEP = 4 / sizeof(T);
    each_row(count, K, [&](int64_t i) {
        T* row = out + i * ldo;
        if (!panels) return (void)memcpy(row, weight + ids[i] * K, size_t(K) * sizeof(T));
        const T* from = weight + ids[i] / PANEL * panel_size(weight, K) + ids[i] % PANEL * STEP;
        for (int64_t k = 0; k < K; k += STEP)
            memcpy(row + k, from + k * PANEL, size_t(K - k < STEP ? K - k : STEP) * sizeof(T));
    });
}

}  // namespace semipd
