// Vectors of float32 at the level that this file is compiled for: 16 lanes with AVX-512, 8 with AVX2.
// Knows nothing of kernels. Everything rounds to nearest even; no operation depends on its neighbours in memory.
#pragma once
#include <immintrin.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace semipd {

using bf16 = uint16_t;

inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline float widen(float x) { return x; }

#if defined(__AVX512F__)
constexpr int LANES = 16;
using V = __m512;
using VI = __m512i;
using Mask = __mmask16;

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline float sum(V a) { return _mm512_reduce_add_ps(a); }
inline float largest(V a) { return _mm512_reduce_max_ps(a); }
inline Mask first(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : Mask((1u << n) - 1); }
inline V select(Mask m, V yes, V no) { return _mm512_mask_blend_ps(m, no, yes); }
inline VI load_bits(const void* p) { return _mm512_loadu_si512(p); }
inline VI set1_bits(uint32_t x) { return _mm512_set1_epi32(int(x)); }
inline V even(VI pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline V odd(VI pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u)))); }

inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline V load(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline V load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline V load(const bf16* p, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16));
}
#if defined(__AVX512BF16__)
inline __m256i narrow(V x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
inline __m256i narrow(V x) {
    VI bits = _mm512_castps_si512(x);
    VI lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    VI rounded = _mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
    Mask nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
#endif
inline V wide(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline void store(float* p, V x) { _mm512_storeu_ps(p, x); }
inline void store(bf16* p, V x) { _mm256_storeu_si256((__m256i*)p, narrow(x)); }
inline void store(float* p, V x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
inline void store(bf16* p, V x, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow(x)); }

// 2 ** x; 0 below -126, so that -inf is well; NaN stays NaN. A polynomial on [-0.5, 0.5], relative error 2e-7.
inline V exp2(V x) {
    Mask small = _mm512_cmp_ps_mask(x, set1(-126.0f), _CMP_LT_OQ);
    V whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    V f = sub(x, whole), p = set1(1.535336188319500e-4f);
    p = fma(p, f, set1(1.339887440266574e-3f));
    p = fma(p, f, set1(9.618437357674640e-3f));
    p = fma(p, f, set1(5.550332471162809e-2f));
    p = fma(p, f, set1(2.402264791363012e-1f));
    p = fma(p, f, set1(6.931472028550421e-1f));
    p = fma(p, f, set1(1.0f));
    return _mm512_mask_mov_ps(_mm512_scalef_ps(p, whole), small, zero());
}

// Rows r[0..15] of 16 32-bit words each become columns.
inline void transpose(VI* r) {
    VI t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}
// The first n of 16 words, the others 0.
inline VI load_words(const void* p, int n) { return _mm512_maskz_loadu_epi32(first(n), p); }
inline void store_bits(void* p, VI x) { _mm512_storeu_si512(p, x); }
inline VI zero_bits() { return _mm512_setzero_si512(); }

#else
constexpr int LANES = 8;
using V = __m256;
using VI = __m256i;
using Mask = __m256;

inline V zero() { return _mm256_setzero_ps(); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline float sum(V a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
}
inline float largest(V a) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
}
inline VI first_bits(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Mask first(int n) { return _mm256_castsi256_ps(first_bits(n)); }
inline V select(Mask m, V yes, V no) { return _mm256_blendv_ps(no, yes, m); }
inline VI load_bits(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline VI set1_bits(uint32_t x) { return _mm256_set1_epi32(int(x)); }
inline V even(VI pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline V odd(VI pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000u)))); }

inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline V load(const bf16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline V load(const float* p, int n) { return _mm256_maskload_ps(p, first_bits(n)); }
inline V load(const bf16* p, int n) {
    alignas(16) bf16 some[8] = {};
    if (n >= 8) return load(p);
    if (n > 0) memcpy(some, p, 2 * size_t(n));
    return load(some);
}
inline __m128i narrow(V x) {
    VI bits = _mm256_castps_si256(x);
    VI lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    VI rounded = _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
    VI nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
    VI halves = _mm256_srli_epi32(rounded, 16);
    VI packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0xd8);
    return _mm256_castsi256_si128(packed);
}
inline V wide(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline void store(float* p, V x) { _mm256_storeu_ps(p, x); }
inline void store(bf16* p, V x) { _mm_storeu_si128((__m128i*)p, narrow(x)); }
inline void store(float* p, V x, int n) { _mm256_maskstore_ps(p, first_bits(n), x); }
inline void store(bf16* p, V x, int n) {
    alignas(16) bf16 all[8];
    store(all, x);
    if (n > 0) memcpy(p, all, 2 * size_t(n < 8 ? n : 8));
}

inline V exp2(V x) {
    Mask small = _mm256_cmp_ps(x, set1(-126.0f), _CMP_LT_OQ);
    x = _mm256_min_ps(set1(128.0f), _mm256_max_ps(set1(-126.0f), x));  // of two they give the second if one is NaN
    V whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    V f = sub(x, whole), p = set1(1.535336188319500e-4f);
    p = fma(p, f, set1(1.339887440266574e-3f));
    p = fma(p, f, set1(9.618437357674640e-3f));
    p = fma(p, f, set1(5.550332471162809e-2f));
    p = fma(p, f, set1(2.402264791363012e-1f));
    p = fma(p, f, set1(6.931472028550421e-1f));
    p = fma(p, f, set1(1.0f));
    VI half = _mm256_srai_epi32(_mm256_cvtps_epi32(whole), 1);  // 2 ** 128 has no float: two factors
    VI rest = _mm256_sub_epi32(_mm256_cvtps_epi32(whole), half);
    auto power = [](VI n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    };
    return _mm256_blendv_ps(mul(mul(p, power(half)), power(rest)), zero(), small);
}

inline void transpose(VI* r) {
    VI t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    VI u[8];
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}
inline VI load_words(const void* p, int n) { return _mm256_maskload_epi32((const int*)p, first_bits(n)); }
inline void store_bits(void* p, VI x) { _mm256_storeu_si256((__m256i*)p, x); }
inline VI zero_bits() { return _mm256_setzero_si256(); }
#endif

// As it would come back from memory of type T.
template <class T>
inline V rounded(V x) {
    if constexpr (sizeof(T) == 4) return x;
    return wide(narrow(x));
}

// silu(gate) * up
inline V gated(V gate, V up) {
    return mul(div(gate, add(set1(1.0f), exp2(mul(gate, set1(-1.44269504088896f))))), up);
}

}  // namespace semipd
