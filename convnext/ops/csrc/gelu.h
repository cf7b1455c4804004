// GELU, x Φ(x), of 16 values.
#pragma once
#include "vector.h"

// GELU for results that are rounded to bf16: error below 5.4e-4, 0 below -3.75 and x above 3.75. Between, Φ(x) - 1/2 is an odd
// polynomial, fitted to the smallest maximum error of x Φ(x) under the condition that it is 1/2 at 3.75.
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

// Its derivative: error below 2.2e-4, 0 below -4.25 and 1 above 4.25, fitted between in the same way.
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

// GELU for results that keep 16 bits: error below 5e-6. Fitted up to 4.8 as above, but as a polynomial in 2 (t / 4.8)² - 1, whose terms
// do not cancel.
INLINE f32x16 gelu_to_split(f32x16 x) {
    const f32x16 t = clamp(x, 4.8f), y = t * t * 0.08680555555555555f - 1.0f;
    f32x16 p = broadcast(0.0014437540667131543f);
    p = p * y + -0.004194625653326511f;
    p = p * y + 0.005392308346927166f;
    p = p * y + -0.0074433619156479836f;
    p = p * y + 0.013864129781723022f;
    p = p * y + -0.022187547758221626f;
    p = p * y + 0.03072081133723259f;
    p = p * y + -0.04056592658162117f;
    p = p * y + 0.052904099225997925f;
    p = p * y + -0.07297976315021515f;
    p = p * y + 0.14721278846263885f;
    return x * (t * p + 0.5f);
}

// 2^x for x <= 0, relative error below 2e-7; 2^-126 below -126.
INLINE f32x16 exp2_negative(f32x16 x) {
    const float shift = 12582912.0f;  // 1.5 x 2^23: adding it rounds to an integer, which is then in the lowest bits
    x = maximum(x, -126);
    const f32x16 shifted = x + shift, f = x - (shifted - shift);
    f32x16 p = broadcast(1.54035303933816e-4f);
    p = p * f + 1.33335581464284e-3f;
    p = p * f + 9.61812910762848e-3f;
    p = p * f + 5.55041086648216e-2f;
    p = p * f + 2.40226506959101e-1f;
    p = p * f + 6.93147180559945e-1f;
    p = p * f + 1.0f;
    return from_bits(bits(p) + (bits(shifted) << 23));
}

// Φ(-|x|), with an absolute error of x Φ(x) below 3e-7. Its logarithm is nearly a parabola: a polynomial, fitted on [0, 5.5] to the
// smallest maximum error of |x| Φ(-|x|), and a line beyond.
INLINE f32x16 tail(f32x16 x) {
    const f32x16 distance = magnitude(x), t = minimum(distance, 5.5f);
    f32x16 p = broadcast(3.1578988455294166e-06f);
    p = p * t + 2.2425369650136417e-07f;
    p = p * t + -0.0006356061203405261f;
    p = p * t + 0.007809941191226244f;
    p = p * t + -0.05312282592058182f;
    p = p * t + -0.45892903208732605f;
    p = p * t + -1.1511627435684204f;
    p = p * t + -0.9999961256980896f;
    return exp2_negative(p - 8.0f * (distance - t));
}

INLINE f32x16 gelu(f32x16 x) { return maximum(x, 0) - magnitude(x) * tail(x); }

INLINE f32x16 gelu_slope(f32x16 x) {
    const f32x16 rest = tail(x), density = 0.3989422804014327f * exp2_negative(x * x * -0.72134752044448170f);
    return select16(x < 0, rest, 1.0f - rest) + x * density;
}
