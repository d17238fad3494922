// bfloat16 linear with AMX, for one row as for many: TDPBF16PS sums the 16 pairs of a tile apart, even and odd, before it
// adds them, so no other instruction gives the same bits. Included by linear.h.
#pragma once

namespace semipd {

constexpr int64_t TILE_K = 32, TILE_ROWS = 16, TILE = TILE_ROWS * TILE_K;
// A panel's part of K, 32 KiB, stays in the first-level cache while many rows go by; their sums lie in the second level.
constexpr int64_t BLOCK_ROWS = 512, BLOCK_K = 256, MANY_ROWS = 128;
// A product of few rows fetches what it multiplies so many features later.
constexpr int64_t AHEAD_K = 64;
// More of x than the second level holds comes from beyond it for each panel: then more than one go together.
constexpr int64_t NEAR_BYTES = 1 << 20, GROUP = 2;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0-3 are sums, 4 and perhaps 5 rows of x, the others weights.
inline void configure(int64_t rows) {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = tile < 5 ? uint8_t(rows) : 16;
    _tile_loadconfig(&config);
}

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// A block of 32 rows: as they lie in x, or copied into tiles [K / 32][2][16][32], padded with 0. In elements.
struct Block {
    const bf16* x;
    int64_t stride, second, step;
};

// At most 16 rows and one panel; `then` is the panel that this thread takes next.
inline void skinny_panel(const Block& block, const bf16* w, int64_t K, const bf16* then, float* sums) {
    const bf16* x = block.x;
    zero_sums();
    for (int64_t k = 0; k < K; k += TILE_K, w += TILE_K * PANEL, x += block.step) {
        const int64_t beyond = k + AHEAD_K - K;
        const char* ahead = (const char*)(beyond < 0 ? w + AHEAD_K * PANEL : then + beyond * PANEL);
        for (int line = 0; line < 64; line++) _mm_prefetch(ahead + line * 64, _MM_HINT_T0);
        _tile_loadd(4, x, 2 * block.stride);
        _tile_loadd(5, w, 256);
        _tile_loadd(6, w + 32, 256);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, w + 64, 256);
        _tile_loadd(5, w + 96, 256);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    _tile_stored(2, sums + 32, PANEL * 4);
    _tile_stored(3, sums + 48, PANEL * 4);
}

// The panel that comes next: fetched from memory, some lines with each tile of K, while this one is computed.
struct Ahead {
    const char *at, *up;  // `up`: as much again, of a gated product, or null
    int64_t left, bytes, lines;
    void fetch() {
        for (int64_t line = 0; line < lines; line++, at += 64, left -= 64) {
            if (left <= 0) {
                if (!up) return;
                at = up, left = bytes, up = nullptr;
            }
            _mm_prefetch(at, _MM_HINT_T1);
        }
    }
};

// 32 rows, or 16, times 32 columns, for `steps` tiles of K from the k-th on, on top of the sums so far.
template <bool SECOND>
inline void tall_block(const Block& block, int64_t k, const bf16* w, int64_t steps, float* sums, Ahead& ahead) {
    const bf16* x = block.x + k * block.step;
    float* below = sums + TILE_ROWS * PANEL;
    if (k == 0) {
        zero_sums();
    } else {
        _tile_loadd(0, sums, PANEL * 4);
        _tile_loadd(1, sums + 16, PANEL * 4);
        if (SECOND) _tile_loadd(2, below, PANEL * 4);
        if (SECOND) _tile_loadd(3, below + 16, PANEL * 4);
    }
    for (int64_t i = 0; i < steps; i++, x += block.step, w += TILE_K * PANEL) {
        ahead.fetch();
        _tile_loadd(6, w, 256);
        _tile_loadd(4, x, 2 * block.stride);
        _tile_dpbf16ps(0, 4, 6);
        if (SECOND) _tile_loadd(5, x + block.second, 2 * block.stride);
        if (SECOND) _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w + 32, 256);
        _tile_dpbf16ps(1, 4, 7);
        if (SECOND) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
    if (SECOND) _tile_stored(2, below, PANEL * 4);
    if (SECOND) _tile_stored(3, below + 16, PANEL * 4);
}

// `there` elements of a row, the rest 0, as the row of a block's tiles that begins at `out`.
inline void tile_row(const bf16* x, int64_t there, int64_t K, bf16* out) {
    for (int64_t k = 0; k < K; k += TILE_K, out += 2 * TILE) {
        const int64_t some = k >= there ? 0 : there - k < TILE_K ? there - k : TILE_K;
        _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(some == 32 ? ~0u : (1u << some) - 1, x + k));
    }
}

inline void tile_rows(const Linear<bf16>& p, int64_t first, int64_t K, bf16* tiles) {
    for (int64_t row = 0; row < 2 * TILE_ROWS; row++)
        tile_row(p.x + (first + row) * p.ldx, first + row < p.rows ? p.K : 0, K, tiles + row * TILE_K);
}

// Where each block of 32 rows lies. What cannot be read in place (features beyond K, rows beyond the last) is copied.
inline const Block* place_blocks(const Linear<bf16>& p, int64_t K) {
    const int64_t rows = 2 * TILE_ROWS, blocks = (p.rows + rows - 1) / rows, whole = K == p.K ? p.rows / rows : 0;
    Block* places = scratch<struct AmxBlocks, Block>(blocks);
    bf16* copies = scratch<struct AmxCopies, bf16>((blocks - whole) * rows * K);
    for (int64_t block = 0; block < blocks; block++) {
        bf16* tiles = copies + (block - whole) * rows * K;
        if (block >= whole) tile_rows(p, block * rows, K, tiles);
        places[block] = block < whole ? Block{p.x + block * rows * p.ldx, p.ldx, TILE_ROWS * p.ldx, TILE_K}
                                      : Block{tiles, TILE_K, TILE, 2 * TILE};
    }
    return places;
}

// Blocks of about BLOCK_K, of one size: a short last one would cost as much to begin as a whole one.
inline int64_t block_of(int64_t K) {
    const int64_t blocks = (K + BLOCK_K / 2) / BLOCK_K, tiles = K / TILE_K;
    return blocks > 1 ? (tiles + blocks - 1) / blocks * TILE_K : K;
}

// `count` panels, `stride` elements from one to the next, for all rows, at most BLOCK_ROWS. x, a block of K at a time, is
// read once for each `together` of them.
inline void tall_panels(const Linear<bf16>& p, const Block* places, int64_t panel, int64_t count, int64_t together,
                        const bf16* w, int64_t stride, Ahead ahead, int64_t K, float* sums) {
    const int64_t block_k = p.rows < MANY_ROWS ? K : block_of(K);
    for (int64_t k = 0; k < K; k += block_k) {
        const int64_t steps = (K - k < block_k ? K - k : block_k) / TILE_K;
        for (int64_t first = 0; first < count; first += together)
            for (int64_t row = 0; row < p.rows; row += 2 * TILE_ROWS) {
                const Block& block = places[row / (2 * TILE_ROWS)];
                for (int64_t part = 2 * first; part < 2 * count && part < 2 * (first + together); part++) {
                    const bf16* weights = w + part / 2 * stride + k * PANEL + part % 2 * 64;
                    float* out = sums + (part / 2 * BLOCK_ROWS + row) * PANEL + part % 2 * 32;
                    if (p.rows - row > TILE_ROWS)
                        tall_block<true>(block, k / TILE_K, weights, steps, out, ahead);
                    else
                        tall_block<false>(block, k / TILE_K, weights, steps, out, ahead);
                }
            }
    }
    if (p.gated)
        finish_gated(p, panel, 0, p.rows, sums, sums + BLOCK_ROWS * PANEL);
    else
        for (int64_t i = 0; i < count; i++) finish(p, panel + i, 0, p.rows, sums + i * BLOCK_ROWS * PANEL);
}

// At most BLOCK_ROWS rows.
inline void amx_rows(const Linear<bf16>& p, int64_t first_panel, int64_t last_panel) {
    const int64_t K = (p.K + TILE_K - 1) / TILE_K * TILE_K, up = to_up(p);
    const bool skinny = p.rows <= TILE_ROWS;
    const Block* places = skinny && K == p.K ? nullptr : place_blocks(p, K);
    const Block x = places ? *places : Block{p.x, p.ldx, 0, TILE_K};
    const int64_t together = !skinny && p.rows * K * 2 > NEAR_BYTES ? GROUP : 1, group = p.gated ? 1 : together;
    const int64_t blocks = (p.rows + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS);
    auto panels_of = [=](int64_t item) {
        const int64_t left = last_panel - first_panel - item * group;
        return left < group ? left : group;
    };
    parallel((last_panel - first_panel + group - 1) / group, 2, [&](auto next) {
        float* sums = scratch<struct AmxSums, float>(2 * (skinny ? TILE_ROWS : BLOCK_ROWS) * PANEL);
        configure(skinny ? p.rows : TILE_ROWS);
        for (int64_t item = next(), following; item >= 0; item = following) {
            following = next();
            const int64_t panel = first_panel + item * group;
            const bf16 *w = p.w + panel * K * PANEL, *then = following < 0 ? w : w + (following - item) * group * K * PANEL;
            if (skinny && p.gated) {
                skinny_panel(x, w, K, w + up, sums);
                skinny_panel(x, w + up, K, then, sums + TILE_ROWS * PANEL);
                finish_gated(p, panel, 0, p.rows, sums, sums + TILE_ROWS * PANEL);
            } else if (skinny) {
                skinny_panel(x, w, K, then, sums);
                finish(p, panel, 0, p.rows, sums);
            } else {
                const int64_t bytes = following < 0 ? 0 : 2 * panels_of(following) * K * PANEL;
                const Ahead ahead{(const char*)then, up && bytes ? (const char*)(then + up) : nullptr, bytes, bytes,
                                  (31 + blocks) / blocks};
                const int64_t count = p.gated ? 2 : panels_of(item);
                tall_panels(p, places, panel, count, together, w, p.gated ? up : K * PANEL, ahead, K, sums);
            }
        }
        _tile_release();
    });
}

// More rows go by in parts of one size, each through all panels: what a part reads of x stays near meanwhile, and weights
// are read for each part. All rows through each panel took 13 % longer for 1,024 tokens of the 0.5 B model on one core.
inline void amx_linear(const Linear<bf16>& p, int64_t first_panel, int64_t last_panel) {
    const int64_t parts = (p.rows + BLOCK_ROWS - 1) / BLOCK_ROWS, block = 2 * TILE_ROWS;
    const int64_t most = ((p.rows + parts - 1) / parts + block - 1) / block * block;
    for (int64_t first = 0; first < p.rows; first += most) {
        Linear<bf16> part = p;
        part.x += first * p.ldx;
        part.rows = p.rows - first < most ? p.rows - first : most;
        part.out = p.out_float ? (void*)((float*)p.out + first * p.ldo) : (void*)((bf16*)p.out + first * p.ldo);
        amx_rows(part, first_panel, last_panel);
    }
}

}  // namespace semipd
