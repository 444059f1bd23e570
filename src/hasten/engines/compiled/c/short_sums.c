/* Products of bytes whose sums provably fit in 16 bits; see operators/int8/short_sums.py. Included behind dense8.c.
   short_dotN adds the products of N quads of a pixel, each in all lanes, with weights that are `step` bytes apart. */

#define QUAD(i) *(const vi *)(w + (i) * step)
#if NATIVE && WIDE == 32
/* All instructions together, or a compiler moves products away from their sums and runs out of registers. */
#define SHORT_FIRST "vpmaddubsw %3, %6, %1\n\t"
#define SHORT_NEXT(w, x) "vpmaddubsw %" w ", %" x ", %2\n\tvpaddw %2, %1, %1\n\t"
#define SHORT_LAST "vpmaddwd %9, %1, %1\n\tvpaddd %1, %0, %0"
#define SHORT_SUM(products, x1, x2, w1, w2) \
  vi product, other; \
  __asm__(products SHORT_LAST \
          : "+v"(sum), "=&v"(product), "=&v"(other) \
          : "m"(QUAD(0)), "m"(QUAD(w1)), "m"(QUAD(w2)), "v"(x0), "v"(x1), "v"(x2), "v"(ones)); \
  return sum;
static inline vi short_dot1(vi sum, vi x0, const u8 *w, long step, vh ones) {
  SHORT_SUM(SHORT_FIRST, x0, x0, 0, 0)
}
static inline vi short_dot2(vi sum, vi x0, vi x1, const u8 *w, long step, vh ones) {
  SHORT_SUM(SHORT_FIRST SHORT_NEXT("4", "7"), x1, x1, 1, 1)
}
static inline vi short_dot3(vi sum, vi x0, vi x1, vi x2, const u8 *w, long step, vh ones) {
  SHORT_SUM(SHORT_FIRST SHORT_NEXT("4", "7") SHORT_NEXT("5", "8"), x1, x2, 1, 2)
}
#else
PLAIN vi short_dot1(vi sum, vi x0, const u8 *w, long step, vh ones) {
  EACH(WIDE) sum[i / 4] += ((vb)x0)[i] * (i8)w[i];
  return sum;
}
PLAIN vi short_dot2(vi sum, vi x0, vi x1, const u8 *w, long step, vh ones) {
  return short_dot1(short_dot1(sum, x0, w, step, ones), x1, w + step, step, ones);
}
PLAIN vi short_dot3(vi sum, vi x0, vi x1, vi x2, const u8 *w, long step, vh ones) {
  return short_dot1(short_dot2(sum, x0, x1, w, step, ones), x2, w + 2 * step, step, ones);
}
#endif
