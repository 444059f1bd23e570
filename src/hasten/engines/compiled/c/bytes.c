/* Sums become bytes: see operators/int8/numbers.py for what it means. Included where a plan has bytes. */

static inline i32 clamp_byte(i32 q, i32 low, i32 high) { return q < low ? low : q > high ? high : q; }

/* The nearest integer, halves to even; the magnitude is at most 2^30, or it is NaN. */
static inline i32 byte_of(float scaled, i32 zero, i32 low, i32 high) {
  return clamp_byte((i32)__builtin_lrintf(scaled) + zero, low, high);
}
