/* Sums become bytes: see operators/int8/numbers.py for what it means. Included where a plan has bytes. */

#if defined(__x86_64__)
#define X86 1
#else
#define X86 0
#endif
#if defined(__aarch64__)
#define ARM 1
#else
#define ARM 0
#endif

#if X86 || ARM
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

#if ARM
#define ANY(value) "w"(value)
#define EVEX_SUFFIX ""
#elif AVX512
#define ANY(value) "v"(value)
#define EVEX_SUFFIX "8"
#else
#define ANY(value) "x"(value)
#define EVEX_SUFFIX ""
#endif

static inline i32 clamp_byte(i32 q, i32 low, i32 high) { return q < low ? low : q > high ? high : q; }

/* The nearest integer, halves to even; the magnitude is at most 2^30, or it is NaN. */
static inline i32 byte_of(float scaled, i32 zero, i32 low, i32 high) {
  return clamp_byte((i32)__builtin_lrintf(scaled) + zero, low, high);
}

/* Hides where a pointer or a number comes from: a compiler would keep each sum of a pointer and a number in a register
   of its own, and drop the bounds of a number that only undefined results leave. */
#define HERE(value) asm volatile("" : "+r"(value))

/* The first bytes of memory as a number; their number is constant. */
INLINE i64 first_bytes(const u8 *from, long bytes) {
  i64 all = 0;
  COPY(&all, from, bytes);
  return all;
}

/* Names of vectors.c, with the width. */
#define N3(name, width) name##_##width
#define N2(name, width) N3(name, width)
#define N(name) N2(name, W)
