// The C interface of one level's library. No torch headers: plain pointers, strides in elements, and torch's thread pool as
// two function pointers. dtype: 0 is float32, 1 is bfloat16. Callers check shapes; nothing is checked here.
#include "attention.h"
#include "linear.h"
#include "rows.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace semipd;
#define EXPORT extern "C" __attribute__((visibility("default")))

// What this library was made of, by `build.digest`: one of other sources than those beside it is not used.
EXPORT const char* semipd_sources() { return SEMIPD_SOURCES; }

// 0, or a number that says why this level cannot run in this process.
EXPORT int32_t semipd_start(ParallelFor run, ThreadCount count) {
    parallel_for = run;
    thread_count = count;
#if defined(__AVX512BF16__)
    use_wide = pairs_are_slow();
#endif
#if defined(__AMX_BF16__)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 1;
#endif
    return 0;
}

template <class T>
static void run_linear(const void* x, int64_t ldx, int64_t rows, int64_t K, const void* w, int64_t N, const void* bias,
                       void* out, int64_t ldo, bool out_float, bool gated, int64_t first, int64_t last) {
    linear(Linear<T>{(const T*)x, ldx, rows, K, (const T*)w, N, (const T*)bias, out, ldo, out_float, gated}, first, last);
}

EXPORT void semipd_linear(int32_t dtype, const void* x, int64_t ldx, int64_t rows, int64_t K, const void* w, int64_t N,
                          const void* bias, void* out, int64_t ldo, int32_t out_float, int32_t gated, int64_t first,
                          int64_t last) {
    (dtype ? run_linear<bf16> : run_linear<float>)(x, ldx, rows, K, w, N, bias, out, ldo, out_float, gated, first, last);
}

template <class T>
static void run_attention(const void* q, int64_t q_row, int64_t q_head, const void* keys, const void* values,
                          int64_t block_size, const int32_t* tables, int64_t table_row, const int32_t* lengths,
                          const int32_t* starts, int64_t sequences, int64_t heads, int64_t kv_heads, int64_t head_dim,
                          float scale, void* out, int64_t out_row, int64_t out_head, int64_t first, int64_t last,
                          int64_t window) {
    attention(Attention<T>{(const T*)q, q_row, q_head, (const T*)keys, (const T*)values, block_size, kv_heads * head_dim,
                           tables, table_row, lengths, starts, sequences, heads, kv_heads, head_dim,
                           scale * 1.44269504088896f, (T*)out, out_row, out_head, first, last, window});
}

EXPORT void semipd_attention(int32_t dtype, const void* q, int64_t q_row, int64_t q_head, const void* keys,
                             const void* values, int64_t block_size, const int32_t* tables, int64_t table_row,
                             const int32_t* lengths, const int32_t* starts, int64_t sequences, int64_t heads,
                             int64_t kv_heads, int64_t head_dim, float scale, void* out, int64_t out_row,
                             int64_t out_head, int64_t first, int64_t last, int64_t window) {
    (dtype ? run_attention<bf16> : run_attention<float>)(q, q_row, q_head, keys, values, block_size, tables, table_row,
                                                         lengths, starts, sequences, heads, kv_heads, head_dim, scale,
                                                         out, out_row, out_head, first, last, window);
}

EXPORT void semipd_rms_norm(int32_t dtype, const void* x, int64_t ldx, const void* weight, float eps, void* residual,
                            int64_t ldr, void* out, int64_t ldo, int64_t rows, int64_t width) {
    if (dtype)
        rms_norm((const bf16*)x, ldx, (const bf16*)weight, eps, (bf16*)residual, ldr, (bf16*)out, ldo, rows, width);
    else
        rms_norm((const float*)x, ldx, (const float*)weight, eps, (float*)residual, ldr, (float*)out, ldo, rows, width);
}

EXPORT void semipd_silu_mul(int32_t dtype, const void* x, int64_t ldx, void* out, int64_t ldo, int64_t rows,
                            int64_t width) {
    if (dtype)
        silu_mul((const bf16*)x, ldx, (bf16*)out, ldo, rows, width);
    else
        silu_mul((const float*)x, ldx, (float*)out, ldo, rows, width);
}

template <class T>
static void run_rope(void* qkv, int64_t ld, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, const float* cos,
                     const float* sin, int64_t angles_row, int64_t half, const int32_t* slots, void* keys, void* values,
                     const void* q_norm, const void* k_norm, float eps) {
    rope_write(Rope<T>{(T*)qkv, ld, rows, heads, kv_heads, dim, cos, sin, angles_row, half, slots, (T*)keys, (T*)values,
                       (const T*)q_norm, (const T*)k_norm, eps});
}

EXPORT void semipd_rope(int32_t dtype, void* qkv, int64_t ld, int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim,
                        const float* cos, const float* sin, int64_t angles_row, int64_t half, const int32_t* slots,
                        void* keys, void* values, const void* q_norm, const void* k_norm, float eps) {
    (dtype ? run_rope<bf16> : run_rope<float>)(qkv, ld, rows, heads, kv_heads, dim, cos, sin, angles_row, half, slots,
                                               keys, values, q_norm, k_norm, eps);
}

EXPORT void semipd_pack_rows(int32_t dtype, const void* weight, int64_t ld, int64_t first, int64_t rows, int64_t K,
                             void* packed) {
    if (dtype)
        pack_rows((const bf16*)weight, ld, first, rows, K, (bf16*)packed);
    else
        pack_rows((const float*)weight, ld, first, rows, K, (float*)packed);
}

EXPORT void semipd_embedding(int32_t dtype, const int32_t* ids, int64_t count, const void* weight, int64_t K,
                             int32_t panels, void* out, int64_t ldo) {
    if (dtype)
        embedding(ids, count, (const bf16*)weight, K, panels, (bf16*)out, ldo);
    else
        embedding(ids, count, (const float*)weight, K, panels, (float*)out, ldo);
}

#include "blocks.h"

// A list of calls, each WORDS words: the number of its function and its arguments, integers and pointers as they are,
// numbers as float64. Done in order by one team (`parallel.h`).
constexpr int64_t WORDS = 26;

static float number(int64_t word) {
    double value;
    memcpy(&value, &word, 8);
    return float(value);
}

static void run_call(const int64_t* w) {
    auto at = [w](int i) { return (void*)w[i + 1]; };
    const int64_t* a = w + 1;
    switch (w[0]) {
        case 0:
            return semipd_linear(int32_t(a[0]), at(1), a[2], a[3], a[4], at(5), a[6], at(7), at(8), a[9], int32_t(a[10]),
                                 int32_t(a[11]), a[12], a[13]);
        case 1:
            return semipd_attention(int32_t(a[0]), at(1), a[2], a[3], at(4), at(5), a[6], (const int32_t*)at(7), a[8],
                                    (const int32_t*)at(9), (const int32_t*)at(10), a[11], a[12], a[13], a[14],
                                    number(a[15]), at(16), a[17], a[18], a[19], a[20], a[21]);
        case 2:
            return semipd_rms_norm(int32_t(a[0]), at(1), a[2], at(3), number(a[4]), at(5), a[6], at(7), a[8], a[9], a[10]);
        case 3: return semipd_silu_mul(int32_t(a[0]), at(1), a[2], at(3), a[4], a[5], a[6]);
        case 4:
            return semipd_rope(int32_t(a[0]), at(1), a[2], a[3], a[4], a[5], a[6], (const float*)at(7),
                               (const float*)at(8), a[9], a[10], (const int32_t*)at(11), at(12), at(13), at(14), at(15),
                               number(a[16]));
        case 5:
            return semipd_grouped_linear(int32_t(a[0]), at(1), a[2], a[3], a[4], at(5), a[6], a[7], a[8], at(9), a[10],
                                         int32_t(a[11]), a[12], (const int32_t*)at(13), (const int32_t*)at(14), a[15],
                                         a[16]);
        case 6:
            return semipd_route(int32_t(a[0]), (const float*)at(1), a[2], a[3], a[4], a[5], (const float*)at(6),
                                int32_t(a[7]), int32_t(a[8]), number(a[9]), a[10], a[11], (int32_t*)at(12),
                                (float*)at(13), (int32_t*)at(14), (int32_t*)at(15));
        case 7:
            return semipd_combine(int32_t(a[0]), at(1), a[2], (const float*)at(3), a[4], at(5), a[6], at(7), a[8], a[9],
                                  a[10]);
        case 8:
            return semipd_latent_rope(int32_t(a[0]), at(1), a[2], a[3], at(4), a[5], a[6], a[7], a[8], a[9], a[10],
                                      (const float*)at(11), (const float*)at(12), a[13], (const int32_t*)at(14), at(15),
                                      number(a[16]), at(17), at(18), a[19], a[20]);
        case 9:
            return semipd_latent_attention(int32_t(a[0]), at(1), a[2], a[3], at(4), a[5], a[6], (const int32_t*)at(7),
                                           a[8], (const int32_t*)at(9), (const int32_t*)at(10), a[11], a[12], a[13],
                                           number(a[14]), at(15), a[16], a[17], a[18], a[19]);
    }
}

EXPORT void semipd_run(const int64_t* calls, int64_t count) {
    as_team([&] {
        for (int64_t i = 0; i < count; i++) run_call(calls + i * WORDS);
    });
}
