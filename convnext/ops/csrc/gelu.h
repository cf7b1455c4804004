// GELU, x Φ(x), of 16 values.
#pragma once
#include "vector.h"

INLINE f32x16 clamp(f32x16 x, float bound) {
    return (f32x16)_mm512_range_ps((__m512)x, _mm512_set1_ps(bound), 2);  // the smaller magnitude, with the sign of x
}

// For results that are rounded to bf16: within 5.4e-4 of GELU, 0 below -3.75 and x above 3.75. Φ(x) - 1/2 as an odd polynomial, fitted
// between them to the least largest error of x Φ(x) under the condition that it is 1/2 at 3.75.
INLINE f32x16 gelu_to_bf16(f32x16 x) {
    const f32x16 t = clamp(x, 3.75f), u = t * t;
    f32x16 p = broadcast(-4.6681407184223644e-07f);
    p = p * u + 2.6008679924416356e-05f;
    p = p * u + -0.0006052152020856738f;
    p = p * u + 0.007772058714181185f;
    p = p * u + -0.06238337233662605f;
    p = p * u + 0.39630308747291565f;
    return x * (t * p + 0.5f);
}

// Its derivative, within 2.2e-4: 0 below -4.25 and 1 above 4.25, in between fitted in the same way.
INLINE f32x16 gelu_slope_to_bf16(f32x16 x) {
    const f32x16 t = clamp(x, 4.25f), u = t * t;
    f32x16 p = broadcast(4.593307956213266e-10f);
    p = p * u + -4.609436388136601e-08f;
    p = p * u + 1.9999806681880727e-06f;
    p = p * u + -4.9466467316960916e-05f;
    p = p * u + 0.000775072374381125f;
    p = p * u + -0.008080019615590572f;
    p = p * u + 0.05684707313776016f;
    p = p * u + -0.2630218267440796f;
    p = p * u + 0.7970290184020996f;
    return t * p + 0.5f;
}

// e^x for x <= 0, relative error below 2e-7; 0 from -87 on.
INLINE f32x16 exp_negative(f32x16 x) {
    const float shift = 12582912.0f;  // 1.5 x 2^23: adding it rounds to whole numbers
    x = select16(x < -87.0f, broadcast(-87.0f), x);
    const f32x16 shifted = x * 1.44269504088896341f + shift, whole = shifted - shift;
    const f32x16 f = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;  // ln 2 in two parts
    f32x16 p = broadcast(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const i32x16 power = ((i32x16)shifted - (i32x16)broadcast(shift) + 127) << 23;
    return p * (f32x16)power;
}

// Φ(x): erf by Abramowitz and Stegun 7.1.26, absolute error below 1e-7.
INLINE f32x16 normal_distribution(f32x16 x) {
    const f32x16 z = x * 0.70710678118654752f;
    const f32x16 magnitude = select16(z < 0, -z, z);
    const f32x16 t = 1.0f / (magnitude * 0.3275911f + 1.0f);
    f32x16 p = broadcast(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const f32x16 tail = 0.5f * p * t * exp_negative(-z * z);
    return select16(z < 0, tail, 1.0f - tail);
}

INLINE f32x16 gelu(f32x16 x) { return x * normal_distribution(x); }

INLINE f32x16 gelu_slope(f32x16 x) {
    return normal_distribution(x) + x * 0.3989422804014327f * exp_negative(x * x * -0.5f);
}
