// Latent attention in bfloat16 with AMX, in the manner of `attention_amx.h`: 16 queries of a softmax in the lanes of a
// vector, keys read as they lie in the cache. A block's values are laid out once for all heads. Included by latent.h.
#pragma once

namespace semipd {

struct AmxLatentScratch {
    alignas(64) bf16 keys[POSITIONS * LATENT_WIDTH_MAX];      // those that cannot be read in place, padded with 0
    alignas(64) bf16 values[POSITIONS * LATENT_WIDTH_MAX];    // [32 pairs of positions][rank][2]
    alignas(64) bf16 queries[LATENT_ROWS * LATENT_WIDTH_MAX];  // [tile][width / 2][16][2]
    alignas(64) float sums[LATENT_ROWS * LATENT_WIDTH_MAX];
    alignas(64) bf16 probabilities[COLUMNS * POSITIONS];
    alignas(64) float scores[POSITIONS * COLUMNS];
    alignas(64) float factor[COLUMNS], maximum[LATENT_ROWS], total[LATENT_ROWS];
    alignas(64) int32_t position[LATENT_ROWS];  // of each row; -1 beyond the last
    const bf16* entry[POSITIONS];
    static void start() { configure(TILE_ROWS); }
    static void stop() { _tile_release(); }
};

template <>
struct LatentScratchOf<bf16> {
    using type = AmxLatentScratch;
};

inline void begin_latent(const Latent<bf16>& p, const LatentItem& item, AmxLatentScratch& s) {
    const int64_t K = (p.width + TILE_K - 1) / TILE_K * TILE_K;
    const int rows = item.count * item.group, tiles = (rows + COLUMNS - 1) / COLUMNS;
    for (int r = 0; r < tiles * COLUMNS; r++) {
        s.position[r] = r < rows ? int32_t(item.position + r / item.group) : -1;
        s.maximum[r] = -INFINITY;
        s.total[r] = 0;
    }
    for (int t = 0; t < tiles; t++) pack_queries(p, item, p.width, t * COLUMNS, K / 2, s.queries + t * COLUMNS * K);
    memset(s.sums, 0, size_t(tiles * COLUMNS * p.rank) * 4);
}

inline void attend_latent_block(const Latent<bf16>& p, const LatentItem& item, int64_t base, int n, AmxLatentScratch& s) {
    const int64_t K = (p.width + TILE_K - 1) / TILE_K * TILE_K;
    const int tiles = (item.count * item.group + COLUMNS - 1) / COLUMNS;
    const bool in_place = K == p.width && p.block_size % TILE_ROWS == 0;
    pack_values(s.entry, n, p.rank, s.values);
    if (!in_place)
        for (int j = 0; j < POSITIONS; j++) {
            bf16* copy = s.keys + j * K;
            memset(copy, 0, size_t(K) * 2);
            if (j < n) memcpy(copy, s.entry[j], size_t(p.width) * 2);
            s.entry[j] = copy;
        }
    const int skipped = base > item.position ? int(base - item.position) * item.group / COLUMNS : 0;
    for (int t = skipped; t < tiles; t++) {
        const int first = t * COLUMNS;
        tile_scores(s.entry, K, s.queries + first * K, K, n, s.scores);
        const VI high = _mm512_sub_epi32(load_bits(s.position + first), _mm512_set1_epi32(int(base) - 1));
        softmax_tile(s.scores, zero_bits(), high, p.scale, s.maximum + first, s.total + first, s.factor, s.probabilities);
        float* sums = s.sums + first * p.rank;
        for (int r = 0; r < COLUMNS; r++) rescale(sums + r * p.rank, s.factor[r], p.rank);
        int64_t d = 0;
        for (; d + 64 <= p.rank; d += 64) add_tile_values<4>(s.probabilities, s.values + 2 * d, p.rank, sums + d);
        for (; d < p.rank; d += 16) add_tile_values<1>(s.probabilities, s.values + 2 * d, p.rank, sums + d);
    }
}

}  // namespace semipd
