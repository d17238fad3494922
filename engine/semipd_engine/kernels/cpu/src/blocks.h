// The C interface of `experts.h` and `latent.h`: part of `kernels.cpp`, which says what all of it has in common.
#pragma once
#include "experts.h"
#include "latent.h"

template <class T>
static void run_grouped(const void* x, int64_t ldx, int64_t factor, int64_t K, const void* w, int64_t N, int64_t stride,
                        int64_t groups, void* out, int64_t ldo, bool out_float, int64_t rows, const int32_t* order,
                        const int32_t* starts, int64_t first, int64_t last) {
    grouped_linear(Grouped<T>{(const T*)x, ldx, factor, K, (const T*)w, N, stride, groups, out, ldo, out_float, rows,
                              order, starts},
                   first, last);
}

EXPORT void semipd_grouped_linear(int32_t dtype, const void* x, int64_t ldx, int64_t factor, int64_t K, const void* w,
                                  int64_t N, int64_t stride, int64_t groups, void* out, int64_t ldo, int32_t out_float,
                                  int64_t rows, const int32_t* order, const int32_t* starts, int64_t first,
                                  int64_t last) {
    (dtype ? run_grouped<bf16> : run_grouped<float>)(x, ldx, factor, K, w, N, stride, groups, out, ldo, out_float, rows,
                                                     order, starts, first, last);
}

EXPORT void semipd_route(int32_t, const float* logits, int64_t row, int64_t rows, int64_t experts, int64_t chosen,
                         const float* correction, int32_t sigmoid, int32_t normalise, float scale, int64_t groups,
                         int64_t groups_chosen, int32_t* ids, float* weights, int32_t* order, int32_t* starts) {
    route(Route{logits, row, rows, experts, chosen, correction, sigmoid != 0, normalise != 0, scale, groups,
                groups_chosen, ids, weights, order, starts});
}

EXPORT void semipd_combine(int32_t dtype, const void* x, int64_t ldx, const float* weights, int64_t chosen,
                           const void* shared, int64_t lds, void* out, int64_t ldo, int64_t rows, int64_t width) {
    if (dtype)
        combine((const bf16*)x, ldx, weights, chosen, (const bf16*)shared, lds, (bf16*)out, ldo, rows, width);
    else
        combine((const float*)x, ldx, weights, chosen, (const float*)shared, lds, (float*)out, ldo, rows, width);
}

template <class T>
static void run_latent_rope(const void* q, int64_t q_row, int64_t q_head, const void* kv, int64_t kv_row, int64_t rows,
                            int64_t heads, int64_t nope, int64_t rank, int64_t half, const float* cos, const float* sin,
                            int64_t angles_row, const int32_t* slots, const void* norm, float eps, void* cache,
                            void* out, int64_t out_row, int64_t out_head) {
    latent_rope_write(LatentRope<T>{(const T*)q, q_row, q_head, (const T*)kv, kv_row, rows, heads, nope, rank, half, cos,
                                    sin, angles_row, slots, (const T*)norm, eps, (T*)cache, (T*)out, out_row, out_head});
}

EXPORT void semipd_latent_rope(int32_t dtype, const void* q, int64_t q_row, int64_t q_head, const void* kv,
                               int64_t kv_row, int64_t rows, int64_t heads, int64_t nope, int64_t rank, int64_t half,
                               const float* cos, const float* sin, int64_t angles_row, const int32_t* slots,
                               const void* norm, float eps, void* cache, void* out, int64_t out_row, int64_t out_head) {
    (dtype ? run_latent_rope<bf16> : run_latent_rope<float>)(q, q_row, q_head, kv, kv_row, rows, heads, nope, rank, half,
                                                             cos, sin, angles_row, slots, norm, eps, cache, out, out_row,
                                                             out_head);
}

template <class T>
static void run_latent(const void* q, int64_t q_row, int64_t q_head, const void* cache, int64_t block_size,
                       int64_t width, const int32_t* tables, int64_t table_row, const int32_t* lengths,
                       const int32_t* starts, int64_t sequences, int64_t heads, int64_t rank, float scale, void* out,
                       int64_t out_row, int64_t out_head, int64_t first, int64_t last) {
    latent_attention(Latent<T>{(const T*)q, q_row, q_head, (const T*)cache, block_size, width, tables, table_row, lengths,
                               starts, sequences, heads, rank, scale * 1.44269504088896f, (T*)out, out_row, out_head,
                               first, last});
}

EXPORT void semipd_latent_attention(int32_t dtype, const void* q, int64_t q_row, int64_t q_head, const void* cache,
                                    int64_t block_size, int64_t width, const int32_t* tables, int64_t table_row,
                                    const int32_t* lengths, const int32_t* starts, int64_t sequences, int64_t heads,
                                    int64_t rank, float scale, void* out, int64_t out_row, int64_t out_head,
                                    int64_t first, int64_t last) {
    (dtype ? run_latent<bf16> : run_latent<float>)(q, q_row, q_head, cache, block_size, width, tables, table_row, lengths,
                                                   starts, sequences, heads, rank, scale, out, out_row, out_head, first,
                                                   last);
}
