/* Products of bytes in vectors of 16 for ARM; see operators/int8/arm.py. An assembler is told here which instructions
   there are, so that no flag need say it. Elsewhere plain C does the same. Weights are loaded where the C
   says: gcc would load many of them before the first product, and run out of registers. clang doesn't, and would
   compute the address of each such load apart. */

#if ARM && !defined(__clang__)
#define LOADED(to, from) __asm__ volatile("ldr %q0, %1" : "=w"(to) : "m"(*(const vi *)(from)))
#define INSTRUCTION __asm__ volatile
#else
#define LOADED(to, from) to = *(const vi *)(from)
#define INSTRUCTION __asm__
#endif
#if ARM
#define DOT_OF(sum, x, w, number) \
  INSTRUCTION(".arch_extension dotprod\n\tsdot %0.4s, %1.16b, %2.4b[" #number "]" : "+w"(sum) : "w"(w), "w"(x))
#define MATRICES(sum, x, w) \
  INSTRUCTION(".arch_extension i8mm\n\tusmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(w))
ARM_TWO(ROW_0, vi, vi, "zip1 %0.2d, %1.2d, %2.2d")
ARM_TWO(ROW_1, vi, vi, "zip2 %0.2d, %1.2d, %2.2d")
#else
PLAIN vi dot_signed(vi sum, i32 x, vi w) {
  EACH(16) sum[i / 4] += (i8)(x >> i % 4 * 8) * (i8)(w[i / 4] >> i % 4 * 8);
  return sum;
}
PLAIN vi matrices_of(vi sum, vb x, vb w) {
  EACH(32) sum[i / 8] += x[i / 16 * 8 + i % 8] * (i8)w[i / 8 % 2 * 8 + i % 8];
  return sum;
}
#define DOT_OF(sum, x, w, number) sum = dot_signed(sum, x[number], w)
#define MATRICES(sum, x, w) sum = matrices_of(sum, (vb)x, (vb)w)
static inline vi ROW_0(vi a, vi b) { return (vi){a[0], a[1], b[0], b[1]}; }
static inline vi ROW_1(vi a, vi b) { return (vi){a[2], a[3], b[2], b[3]}; }
#endif
#define TWICE_0(a) ROW_0(a, a)
#define TWICE_1(a) ROW_1(a, a)

/* Bytes of a pixel less 128, from the register's start on. */
#define SIGNED(x) ((vi)((vb)(x) ^ 128))
#define BYTES_OF_16(at) SIGNED(*(const vi_u *)(at))
#define BYTES_OF_8(at) SIGNED(((pair_of){*(const i64_u *)(at), 0}))
#define BYTES_OF_4(at) SIGNED(((vi){*(const i32_u *)(at), 0, 0, 0}))

/* Eight bytes of each of two pixels, or twice as many. */
typedef i64 pair_of __attribute__((vector_size(16), may_alias));
typedef i64 i64_u __attribute__((aligned(1), may_alias));
#define ROWS_OF_8(to, x, y) to[0] = (vi)(pair_of){*(const i64_u *)(x), *(const i64_u *)(y)}
#define ROWS_OF_16(to, x, y) \
  do { \
    const vi one = *(const vi_u *)(x), other = *(const vi_u *)(y); \
    to[0] = ROW_0(one, other), to[1] = ROW_1(one, other); \
  } while (0)
