// Vectors of 16 values in two registers of AVX2, with the operators that the vector extensions give to one register, and the functions
// that vector.h has for AVX-512.
#pragma once

template <class V> struct Pair { V low, high; };

#define BINARY(OP)                                                                                                             \
    template <class V> INLINE Pair<V> operator OP(Pair<V> a, Pair<V> b) { return {a.low OP b.low, a.high OP b.high}; }          \
    template <class V> INLINE Pair<V> operator OP(Pair<V> a, decltype(V{}[0] + V{}[0]) b) { return {a.low OP b, a.high OP b}; } \
    template <class V> INLINE Pair<V> operator OP(decltype(V{}[0] + V{}[0]) a, Pair<V> b) { return {a OP b.low, a OP b.high}; }
BINARY(+)
BINARY(-)
BINARY(*)
BINARY(&)
BINARY(|)
#undef BINARY

template <class V> INLINE Pair<V> operator~(Pair<V> a) { return {~a.low, ~a.high}; }
template <class V> INLINE Pair<V> operator<<(Pair<V> a, int by) { return {a.low << by, a.high << by}; }
template <class V, class O> INLINE Pair<V> &operator+=(Pair<V> &a, O b) { return a = a + b; }
template <class V, class O> INLINE Pair<V> &operator-=(Pair<V> &a, O b) { return a = a - b; }
template <class V, class O> INLINE Pair<V> &operator*=(Pair<V> &a, O b) { return a = a * b; }
INLINE Pair<i32x8> operator<(Pair<f32x8> a, float b) { return {a.low < b, a.high < b}; }
INLINE Pair<i32x8> operator!=(Pair<f32x8> a, Pair<f32x8> b) { return {a.low != b.low, a.high != b.high}; }
