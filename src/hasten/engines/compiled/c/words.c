/* Numbers of 16 bits: their products with weights, and sums that become such; see operators/int8/words.py.
   Included behind dense8.c, whose vectors it has. */

typedef i16 vs __attribute__((vector_size(WIDE / 2), may_alias));
typedef i16 vs_u __attribute__((vector_size(WIDE / 2), aligned(2), may_alias));
typedef i16 vh_u __attribute__((vector_size(WIDE), aligned(2), may_alias));
typedef u8 vq __attribute__((vector_size(WIDE / 2), may_alias));

/* The sums of each lane's products of its two numbers; w from a register, or from memory. */
#if defined(__AVX512VNNI__) && (WIDE == 64 || defined(__AVX512VL__))
#define SUM16(w) __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), w)
#elif defined(__AVXVNNI__) && WIDE == 32
#define SUM16(w) __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), w)
#else /* Both instructions together, as in dense8.c. */
#define SUM16(w) vi product; __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum), "=&v"(product) : "v"(x), w)
#endif
#if NATIVE
static inline vi dot16(vi sum, vi x, vi w) { SUM16("v"(w)); return sum; }
static inline vi dot16_from(vi sum, vi x, const vi *w) { SUM16("m"(*w)); return sum; }
#else
static inline vi dot16(vi sum, vi x, vi w) {
#if WIDE == 16 && defined(__SSE2__)
  typedef i16 words __attribute__((vector_size(16)));
  return sum + (vi)__builtin_ia32_pmaddwd128((words)x, (words)w);
#else
  return sum + ((vi)((vw)x << 16) >> 16) * ((vi)((vw)w << 16) >> 16) + (x >> 16) * (w >> 16);
#endif
}
static inline vi dot16_from(vi sum, vi x, const vi *w) { return dot16(sum, x, *w); }
#endif

#if NATIVE
TWO(larger, vi, vi, "vpmaxsd")
TWO(smaller, vi, vi, "vpminsd")
TWO(larger_words, vh, vh, "vpmaxsw")
TWO(smaller_words, vh, vh, "vpminsw")
TWO(low_words, vh, vh, "vpunpcklwd")
TWO(high_words, vh, vh, "vpunpckhwd")
#else
static inline vi larger(vi a, vi b) { const vi above = a > b; return (a & above) | (b & ~above); }
static inline vi smaller(vi a, vi b) { const vi below = a < b; return (a & below) | (b & ~below); }
static inline vh larger_words(vh a, vh b) { const vh above = a > b; return (a & above) | (b & ~above); }
static inline vh smaller_words(vh a, vh b) { const vh below = a < b; return (a & below) | (b & ~below); }
PLAIN vh low_words(vh a, vh b) { vh r; EACH(WIDE / 2) r[i] = (i & 1 ? b : a)[i / 8 * 8 + i % 8 / 2]; return r; }
PLAIN vh high_words(vh a, vh b) { vh r; EACH(WIDE / 2) r[i] = (i & 1 ? b : a)[i / 8 * 8 + 4 + i % 8 / 2]; return r; }
#endif

/* Rounded sums as numbers of 16 bits. */
static inline vs as_words(vi sum, vi zero, vi low, vi high) {
  return __builtin_convertvector(smaller(larger(sum + zero, low), high), vs);
}

/* The same of two vectors, which have four each of each eight channels. */
static inline vh as_words_of_two(vi a, vi b, vi zero, vh low, vh high) {
  return smaller_words(larger_words(pack_words(a + zero, b + zero), low), high);
}

/* The words become bytes; they are such already. */
static inline void put_bytes(u8 *y, vh words, long count) {
  const vq r = __builtin_convertvector(words, vq);
  COPY(y, &r, count);
}

/* Rows of a picture with pads, as dense8.c's pad_rows; sizes are numbers, not bytes. */
static void pad_words(i16 *restrict to, const i16 *restrict from, long top, long rows, long high, long wide,
                      long left, long right, long above, int zero) {
  for (long row = top - above; row < top - above + rows; row++, to += left + wide + right) {
    const int within = row >= 0 && row < high;
    for (long i = 0; i < left; i++) to[i] = zero;
    if (within) __builtin_memcpy(to + left, from + row * wide, 2 * wide);
    else for (long i = 0; i < wide; i++) to[left + i] = zero;
    for (long i = 0; i < right; i++) to[left + wide + i] = zero;
  }
}
/* The same of bytes, which become words. */
static void pad_bytes(i16 *restrict to, const u8 *restrict from, long top, long rows, long high, long wide, long left,
                      long right, long above, int zero) {
  for (long row = top - above; row < top - above + rows; row++, to += left + wide + right) {
    const int within = row >= 0 && row < high;
    for (long i = 0; i < left; i++) to[i] = zero;
    long i = 0;
    for (; within && i + WIDE / 2 <= wide; i += WIDE / 2) *(vh_u *)(to + left + i) = words_of(from + row * wide + i);
    for (; i < wide; i++) to[left + i] = within ? from[row * wide + i] : zero;
    for (long i = 0; i < right; i++) to[left + wide + i] = zero;
  }
}

static inline i32 cut_word(i32 q, i32 low, i32 high) { return q < low ? low : q > high ? high : q; }

/* Sums of two words, each times a factor in 256ths of a step. */
static void add16(i16 *restrict y, const i16 *restrict p, const i16 *restrict q, long count, i32 zero_p, i32 zero_q,
                  float a, float b, i32 zero, i32 low, i32 high) {
  long i = 0;
  for (; i + LANES <= count; i += LANES) {
    const vi x = __builtin_convertvector(*(const vs_u *)(p + i), vi) - zero_p;
    const vi z = __builtin_convertvector(*(const vs_u *)(q + i), vi) - zero_q;
    const vi s = nearest(__builtin_convertvector(x, vf) * a) + nearest(__builtin_convertvector(z, vf) * b);
    *(vs_u *)(y + i) = as_words((s + 128) >> 8, splat(zero), splat(low), splat(high));
  }
  for (; i < count; i++) {
    const i32 s = (i32)__builtin_lrintf((float)(p[i] - zero_p) * a) + (i32)__builtin_lrintf((float)(q[i] - zero_q) * b);
    y[i] = cut_word(((s + 128) >> 8) + zero, low, high);
  }
}

/* Words of floats; NaN becomes the lowest. */
static inline i16 word_of(float v, float step, i32 zero, i32 low, i32 high) {
  v = v / step;
  v = v > -1073741824.f ? v : -1073741824.f;
  v = v < 1073741824.f ? v : 1073741824.f;
  return cut_word((i32)__builtin_lrintf(v) + zero, low, high);
}

/* Products of words with factors in steps of the result. */
static void multiply16(i16 *restrict y, const i16 *restrict p, const float *restrict factors, long count, i32 zero_p,
                       i32 zero, i32 low, i32 high) {
  long i = 0;
  for (; i + LANES <= count; i += LANES) {
    const vi x = __builtin_convertvector(*(const vs_u *)(p + i), vi) - zero_p;
    const vi s = nearest(__builtin_convertvector(x, vf) * *(const vf_u *)(factors + i));
    *(vs_u *)(y + i) = as_words(s, splat(zero), splat(low), splat(high));
  }
  for (; i < count; i++)
    y[i] = cut_word((i32)__builtin_lrintf((float)(p[i] - zero_p) * factors[i]) + zero, low, high);
}

/* Factors of words in steps of the result. */
static void factors16(float *restrict factors, const i16 *restrict q, long count, i32 zero_q, float ratio) {
  for (long i = 0; i < count; i++) factors[i] = (float)(q[i] - zero_q) * ratio;
}
