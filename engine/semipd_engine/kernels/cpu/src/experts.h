// A mixture of experts: which experts a row goes to, its products with them, and the sum of what they say. The products
// serve the heads of latent attention as well. Only matrices that some row takes are read; a row's bits do not depend on
// who else takes them.
#pragma once
#include "linear.h"
#include "rows.h"

namespace semipd {

template <class T>
struct Grouped {
    const T* x;
    int64_t ldx, factor, K;
    const T* w;
    int64_t N, stride, groups;
    void* out;
    int64_t ldo;
    bool out_float;
    int64_t rows;
    const int32_t *order, *starts;

    int64_t begin(int64_t group) const { return starts ? starts[group] : 0; }
    int64_t count(int64_t group) const { return starts ? starts[group + 1] - starts[group] : rows / groups; }
    int64_t place(int64_t group, int64_t i) const { return order ? order[begin(group) + i] : i * groups + group; }
};

// Sums of a panel to their rows' places, rounded once.
template <class T>
inline void scatter(const Grouped<T>& p, const int64_t* places, int64_t count, int64_t panel, const float* sums) {
    const int64_t column = panel * PANEL, width = p.N - column < PANEL ? p.N - column : PANEL;
    for (int64_t r = 0; r < count; r++)
        for (int64_t c = 0; c < width; c += LANES) {
            const V value = load(sums + r * PANEL + c);
            const int n = int(width - c < LANES ? width - c : LANES);
            const int64_t at = places[r] * p.ldo + column + c;
            if (p.out_float)
                store((float*)p.out + at, value, n);
            else
                store((T*)p.out + at, value, n);
        }
}

// Panels first .. last - 1 of a group, at most STREAMS, for few rows.
template <class T>
inline void grouped_few(const Grouped<T>& p, int64_t group, int64_t first, int64_t last) {
    const int count = int(p.count(group)), n = int(last - first);
    const T *rows[FEW], *panels[STREAMS];
    int64_t places[FEW];
    for (int r = 0; r < count; r++) {
        places[r] = p.place(group, r);
        rows[r] = p.x + places[r] / p.factor * p.ldx;
    }
    for (int i = 0; i < n; i++) panels[i] = p.w + group * p.stride + (first + i) * panel_size(p.w, p.K);
    alignas(64) float sums[STREAMS * FEW * PANEL];
    few_sums(rows, count, panels, n, p.K, sums);
    for (int i = 0; i < n; i++) scatter(p, places, count, first + i, sums + i * count * PANEL);
}

// One panel, for any number of rows.
template <class T>
inline void grouped_panel(const Grouped<T>& p, int64_t group, int64_t panel) {
    using D = typename DotOf<T>::type;
    const T* w = p.w + group * p.stride + panel * panel_size(p.w, p.K);
    const int64_t total = p.count(group), blocks = blocks_of<D>(total);
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t first = total * b / blocks, count = total * (b + 1) / blocks - first;
        const T* rows[TALL];
        int64_t places[TALL];
        for (int64_t r = 0; r < count; r++) {
            places[r] = p.place(group, first + r);
            rows[r] = p.x + places[r] / p.factor * p.ldx;
        }
        alignas(64) float sums[TALL * PANEL];
        panel_sums<D>(rows, int(count), w, p.K, sums, b == 0);
        scatter(p, places, count, panel, sums);
    }
}

#if defined(__AMX_BF16__)
// Rows of a group are gathered into tiles once for so many panels.
constexpr int64_t PANELS_TOGETHER = 4;

inline void amx_grouped_panels(const Grouped<bf16>& p, int64_t group, int64_t first, int64_t last, bf16* tiles, float* sums) {
    const int64_t K = (p.K + TILE_K - 1) / TILE_K * TILE_K, total = p.count(group), most = 2 * TILE_ROWS;
    const Block block{tiles, TILE_K, TILE, 2 * TILE};
    for (int64_t begin = 0; begin < total; begin += most) {
        const int64_t count = total - begin < most ? total - begin : most;
        int64_t places[most];
        for (int64_t r = 0; r < (count > TILE_ROWS ? most : TILE_ROWS); r++) {
            if (r < count) places[r] = p.place(group, begin + r);
            tile_row(r < count ? p.x + places[r] / p.factor * p.ldx : p.x, r < count ? p.K : 0, K, tiles + r * TILE_K);
        }
        for (int64_t panel = first; panel < last; panel++) {
            const bf16* w = p.w + group * p.stride + panel * K * PANEL;
            Ahead none{};
            if (count <= TILE_ROWS) {
                skinny_panel(block, w, K, panel + 1 < last ? w + K * PANEL : w, sums);
            } else {
                tall_block<true>(block, 0, w, K / TILE_K, sums, none);
                tall_block<true>(block, 0, w + 64, K / TILE_K, sums + 32, none);
            }
            scatter(p, places, count, panel, sums);
        }
    }
}

inline void amx_grouped(const Grouped<bf16>& p, const int64_t* active, int64_t count, int64_t first, int64_t last) {
    const int64_t K = (p.K + TILE_K - 1) / TILE_K * TILE_K;
    const int64_t pieces = (last - first + PANELS_TOGETHER - 1) / PANELS_TOGETHER;
    parallel(count * pieces, 2, [&](auto next) {
        bf16* tiles = scratch<struct GroupTiles, bf16>(2 * TILE_ROWS * K);
        float* sums = scratch<struct GroupSums, float>(2 * TILE_ROWS * PANEL);
        configure(TILE_ROWS);
        for (int64_t item = next(); item >= 0; item = next()) {
            const int64_t panel = first + item % pieces * PANELS_TOGETHER;
            const int64_t end = last - panel < PANELS_TOGETHER ? last : panel + PANELS_TOGETHER;
            amx_grouped_panels(p, active[item / pieces], panel, end, tiles, sums);
        }
        _tile_release();
    });
}
#endif

template <class T>
inline void grouped_linear(const Grouped<T>& p, int64_t first_panel, int64_t last_panel) {
    int64_t* active = scratch<struct ActiveGroups, int64_t>(p.groups);
    int64_t count = 0;
    const int64_t panels = last_panel - first_panel;
    for (int64_t group = 0; group < p.groups; group++)
        if (p.count(group) > 0) active[count++] = group;
#if defined(__AMX_BF16__)
    if constexpr (sizeof(T) == 2) return amx_grouped(p, active, count, first_panel, last_panel);
#endif
    const int64_t pieces = parts_of(panels, STREAMS);
    parallel(count * pieces, 2, [&](auto next) {
        for (int64_t item = next(); item >= 0; item = next()) {
            const int64_t group = active[item / pieces], piece = item % pieces;
            const int64_t first = first_panel + panels * piece / pieces, last = first_panel + panels * (piece + 1) / pieces;
            if (p.count(group) <= FEW)
                grouped_few(p, group, first, last);
            else
                for (int64_t panel = first; panel < last; panel++) grouped_panel(p, group, panel);
        }
    });
}

struct Route {
    const float* logits;
    int64_t row, rows, experts, chosen;
    const float* correction;
    bool sigmoid, normalise;
    float scale;
    int64_t groups, groups_chosen;
    int32_t* ids;
    float* weights;
    int32_t *order, *starts;
};

inline int64_t likeliest(const float* values, int64_t count) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return best;
}

// What a group counts: its best score, or the sum of its two best.
inline float group_value(const float* scores, int64_t size, bool two) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; i++)
        if (scores[i] > first) {
            second = first;
            first = scores[i];
        } else if (scores[i] > second)
            second = scores[i];
    return two ? first + second : first;
}

// scores and choice: room for p.experts, in whole vectors.
inline void route_row(const Route& p, int64_t row, float* scores, float* choice) {
    const float* logits = p.logits + row * p.row;
    const V log2e = set1(1.44269504088896f), one = set1(1.0f);
    const float most = logits[likeliest(logits, p.experts)];
    float total = 0;
    for (int64_t i = 0; i < p.experts; i += LANES) {
        const int n = int(p.experts - i < LANES ? p.experts - i : LANES);
        const V x = load(logits + i, n);
        if (p.sigmoid)
            store(scores + i, div(one, add(one, exp2(mul(sub(zero(), x), log2e)))), n);
        else
            store(scores + i, exp2(mul(sub(x, set1(most)), log2e)), n);
        for (int lane = 0; lane < n; lane++) total += scores[i + lane];
    }
    for (int64_t i = 0; i < p.experts; i++) {
        if (!p.sigmoid) scores[i] /= total;
        choice[i] = p.correction ? scores[i] + p.correction[i] : scores[i];
    }
    if (p.groups > 1) {
        const int64_t size = p.experts / p.groups;
        float* values = scratch<struct GroupValues, float>(p.groups);
        for (int64_t g = 0; g < p.groups; g++) values[g] = group_value(choice + g * size, size, p.sigmoid);
        for (int64_t k = 0; k < p.groups_chosen; k++) values[likeliest(values, p.groups)] = -INFINITY;
        for (int64_t g = 0; g < p.groups; g++)
            if (values[g] != -INFINITY)
                for (int64_t i = 0; i < size; i++) choice[g * size + i] = -INFINITY;
    }
    float sum = 0;
    for (int64_t k = 0; k < p.chosen; k++) {
        const int64_t best = likeliest(choice, p.experts);
        choice[best] = -INFINITY;
        p.ids[row * p.chosen + k] = int32_t(best);
        p.weights[row * p.chosen + k] = scores[best];
        sum += scores[best];
    }
    for (int64_t k = 0; k < p.chosen; k++) {
        float& weight = p.weights[row * p.chosen + k];
        weight = (p.normalise ? weight / (sum + 1e-20f) : weight) * p.scale;
    }
}

inline void route(const Route& p) {
    each_row(p.rows, p.experts * (p.chosen + 4), [&](int64_t row) {
        float* room = scratch<struct RouteRoom, float>(2 * p.experts);
        route_row(p, row, room, room + p.experts);
    });
    parallel(1, 2, [&](auto next) {
        if (next() < 0) return;
        const int64_t places = p.rows * p.chosen;
        int32_t* at = scratch<struct RoutePlaces, int32_t>(p.experts);
        for (int64_t e = 0; e < p.experts; e++) at[e] = 0;
        for (int64_t i = 0; i < places; i++) at[p.ids[i]]++;
        int32_t sum = 0;
        for (int64_t e = 0; e < p.experts; e++) {
            p.starts[e] = sum;
            sum += at[e];
            at[e] = p.starts[e];
        }
        p.starts[p.experts] = sum;
        for (int64_t i = 0; i < places; i++) p.order[at[p.ids[i]]++] = int32_t(i);
    });
}

template <class T>
inline void combine(const T* x, int64_t ldx, const float* weights, int64_t chosen, const T* shared, int64_t lds, T* out,
                    int64_t ldo, int64_t rows, int64_t width) {
    each_row(rows, width * chosen, [&](int64_t row) {
        for (int64_t i = 0; i < width; i += LANES) {
            const int n = int(width - i < LANES ? width - i : LANES);
            V sum = zero();
            for (int64_t k = 0; k < chosen; k++)
                sum = fma(set1(weights[row * chosen + k]), load(x + (row * chosen + k) * ldx + i, n), sum);
            if (shared) sum = add(sum, load(shared + row * lds + i, n));
            store(out + row * ldo + i, sum, n);
        }
    });
}

}  // namespace semipd
