/* Vectors of WIDE bytes for convolutions of bytes; see operators/int8/dense.py. With QUADS a dot product takes
   four bytes of each number of 32 bits, else two of 16 bits. What a processor lacks is written in plain C, with
   the same result, so that each text is right everywhere. */

#define LANES (WIDE / 4)
#define PARTS (WIDE / 16)
#define PLAIN static __attribute__((noinline)) /* or compiling takes minutes */
#define EACH(size) for (int i = 0; i < (size); i++)
typedef i32 vi __attribute__((vector_size(WIDE), may_alias));
typedef u32 vw __attribute__((vector_size(WIDE), may_alias));
typedef float vf __attribute__((vector_size(WIDE), may_alias));
typedef i16 vh __attribute__((vector_size(WIDE), may_alias));
typedef u8 vb __attribute__((vector_size(WIDE), may_alias));
typedef i32 vi_u __attribute__((vector_size(WIDE), aligned(1), may_alias));
typedef float vf_u __attribute__((vector_size(WIDE), aligned(1), may_alias));
typedef u8 vb_u __attribute__((vector_size(WIDE), aligned(1), may_alias));
typedef i32 i32_u __attribute__((aligned(1), may_alias));
typedef u8 half_u8 __attribute__((vector_size(WIDE / 2), aligned(1), may_alias));
typedef i8 half_i8 __attribute__((vector_size(WIDE / 2), aligned(1), may_alias));

#if (WIDE == 64 && defined(__AVX512BW__)) || (WIDE == 32 && defined(__AVX2__))
#define NATIVE 1
#else
#define NATIVE 0
#endif
#ifdef __clang__
#define OR_MEMORY "v"
#else
#define OR_MEMORY "vm"
#endif
#define TWO(name, type, from, instruction)                                        \
  static inline type name(from a, from b) {                                       \
    type r;                                                                       \
    __asm__(instruction " %2, %1, %0" : "=v"(r) : "v"(a), OR_MEMORY(b));          \
    return r;                                                                     \
  }

/* Parameters of a layer's end, as int32 in its table. */
struct end { i32 zero, low, high, factors, offset, shift, sum_low, sum_high; };

static inline vi splat(i32 value) { return value - (vi){}; }

#if NATIVE
TWO(pack_words, vh, vi, "vpackssdw")
TWO(pack_bytes, vb, vh, "vpackuswb")
TWO(add_words, vh, vh, "vpaddsw")
TWO(most, vb, vb, "vpmaxub")
TWO(least, vb, vb, "vpminub")
TWO(look, vb, vb, "vpshufb")
TWO(most_floats, vf, vf, "vmaxps")
TWO(less_bytes, vb, vb, "vpsubsb")
TWO(dot_words, vi, vh, "vpmaddwd")
TWO(low_bytes, vb, vb, "vpunpcklbw")
TWO(high_bytes, vb, vb, "vpunpckhbw")
static inline vi nearest(vf a) {
  vi r;
  __asm__("vcvtps2dq %1, %0" : "=v"(r) : "v"(a));
  return r;
}
static inline vh words_of(const u8 *at) {
  vh r;
  __asm__("vpmovzxbw %1, %0" : "=v"(r) : "m"(*(const half_u8 *)at));
  return r;
}
static inline vh words_of_signed(const u8 *at) {
  vh r;
  __asm__("vpmovsxbw %1, %0" : "=v"(r) : "m"(*(const half_i8 *)at));
  return r;
}
#elif ARM
#define ARM_TWO(name, to, from, instruction) \
  static inline to name(from a, from b) { to r; __asm__(instruction : "=&w"(r) : "w"(a), "w"(b)); return r; }
ARM_TWO(pack_words, vh, vi, "sqxtn %0.4h, %1.4s\n\tsqxtn2 %0.8h, %2.4s")
ARM_TWO(pack_bytes, vb, vh, "sqxtun %0.8b, %1.8h\n\tsqxtun2 %0.16b, %2.8h")
ARM_TWO(add_words, vh, vh, "sqadd %0.8h, %1.8h, %2.8h")
ARM_TWO(most, vb, vb, "umax %0.16b, %1.16b, %2.16b")
ARM_TWO(least, vb, vb, "umin %0.16b, %1.16b, %2.16b")
ARM_TWO(most_floats, vf, vf, "fmax %0.4s, %1.4s, %2.4s")
static inline vi nearest(vf a) { vi r; __asm__("fcvtns %0.4s, %1.4s" : "=w"(r) : "w"(a)); return r; }
#else
static inline i32 cut(i32 value, i32 low, i32 high) { return value < low ? low : value > high ? high : value; }
PLAIN vh pack_words(vi a, vi b) {
  vh r;
  EACH(LANES) { r[i / 4 * 8 + i % 4] = cut(a[i], -32768, 32767); r[i / 4 * 8 + 4 + i % 4] = cut(b[i], -32768, 32767); }
  return r;
}
PLAIN vb pack_bytes(vh a, vh b) {
  vb r;
  EACH(WIDE / 2) { r[i / 8 * 16 + i % 8] = cut(a[i], 0, 255); r[i / 8 * 16 + 8 + i % 8] = cut(b[i], 0, 255); }
  return r;
}
PLAIN vh add_words(vh a, vh b) { vh r; EACH(WIDE / 2) r[i] = cut(a[i] + b[i], -32768, 32767); return r; }
PLAIN vb most(vb a, vb b) { vb r; EACH(WIDE) r[i] = a[i] > b[i] ? a[i] : b[i]; return r; }
PLAIN vb least(vb a, vb b) { vb r; EACH(WIDE) r[i] = a[i] < b[i] ? a[i] : b[i]; return r; }
static inline vf most_floats(vf a, vf b) {
  const vi above = a > b;
  return (vf)(((vi)a & above) | ((vi)b & ~above));
}
PLAIN vi nearest(vf a) { vi r; EACH(LANES) r[i] = (i32)__builtin_lrintf(a[i]); return r; }
#endif
#if !NATIVE
static inline vh words_of(const u8 *at) { return __builtin_convertvector(*(const half_u8 *)at, vh); }
static inline vh words_of_signed(const u8 *at) { return __builtin_convertvector(*(const half_i8 *)at, vh); }
#endif

/* The sums of each lane's products of its bytes or numbers of 16 bits; w from a register, or from memory. */
#if QUADS && defined(__AVX512VNNI__) && (WIDE == 64 || defined(__AVX512VL__))
#define DOT "vpdpbusd %2, %1, %0"
#elif QUADS && WIDE == 32 && defined(__AVXVNNI__)
#define DOT "%{vex%} vpdpbusd %2, %1, %0"
#endif
#ifdef DOT
static inline vi dot(vi sum, vi x, vi w) {
  __asm__(DOT : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}
static inline vi dot_from(vi sum, vi x, const vi *w) {
  __asm__(DOT : "+v"(sum) : "v"(x), "m"(*w));
  return sum;
}
#if WIDE == 64 && defined(__AVX512VL__) && !defined(__clang__) /* which has no name for half of some registers */
/* The same for the first half of the sums, in half the time; the others become 0. */
#define HALF
static inline vi dot_half(vi sum, vi x, vi w) {
  __asm__("vpdpbusd %t2, %t1, %t0" : "+v"(sum) : "v"(x), "v"(w));
  return sum;
}
static inline vi dot_half_from(vi sum, vi x, const vi *w) {
  __asm__("vpdpbusd %2, %t1, %t0" : "+v"(sum) : "v"(x), "m"(*(const half_u8 *)w));
  return sum;
}
#endif
#elif !QUADS && NATIVE
/* Both instructions together, or a compiler moves products away from their sums and runs out of registers. */
#define DOT "vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
static inline vi dot(vi sum, vi x, vi w) {
  vi product;
  __asm__(DOT : "+v"(sum), "=&v"(product) : "v"(x), "v"(w));
  return sum;
}
static inline vi dot_from(vi sum, vi x, const vi *w) {
  vi product;
  __asm__(DOT : "+v"(sum), "=&v"(product) : "v"(x), "m"(*w));
  return sum;
}
#else
#if QUADS
PLAIN vi dot(vi sum, vi x, vi w) {
  sum += (x & 255) * ((vi)((vw)w << 24) >> 24) + (x >> 8 & 255) * ((vi)((vw)w << 16) >> 24);
  return sum + (x >> 16 & 255) * ((vi)((vw)w << 8) >> 24) + (x >> 24 & 255) * (w >> 24);
}
#elif WIDE == 16 && defined(__SSE2__)
static inline vi dot(vi sum, vi x, vi w) {
  typedef i16 words __attribute__((vector_size(16)));
  return sum + (vi)__builtin_ia32_pmaddwd128((words)x, (words)w);
}
#else
static inline vi dot(vi sum, vi x, vi w) {
  return sum + ((vi)((vw)x << 16) >> 16) * ((vi)((vw)w << 16) >> 16) + (x >> 16) * (w >> 16);
}
#endif
static inline vi dot_from(vi sum, vi x, const vi *w) { return dot(sum, x, *w); }
#endif
#ifndef HALF /* the weights of the other half are 0 */
#define dot_half dot
#define dot_half_from dot_from
#endif

/* Weights: numbers of 16 bits, or bytes that are widened. */
#define WEIGHTS(at) (*(const vi *)(at))
#define WEIGHTS_OF_BYTES(at) ((vi)words_of_signed(at))

static inline vi scaled(vi sum, const u8 *scale) {
  return nearest(__builtin_convertvector(sum, vf) * *(const vf *)scale);
}

/* The same with sums below 0 multiplied by a slope, which is at most 1. */
static inline vi scaled_sloped(vi sum, const u8 *scale, const u8 *slope) {
  const vf found = __builtin_convertvector(sum, vf) * *(const vf *)scale;
  return nearest(most_floats(found, found * *(const vf *)slope));
}

/* Four vectors of a pixel, packed by twos, as bytes. A vector has 4 of each 16 channels. */
#define bytes_of_one pack_bytes

/* Two vectors of each of two pixels as bytes: all of the first pixel's, then all of the second's. A
   vector has 4 of each 8 channels. */
static inline vb bytes_of_two(vh a, vh b) {
  const vb r = pack_bytes(a, b);
  typedef i64 units __attribute__((vector_size(WIDE)));
#if WIDE == 16
  return r;
#elif WIDE == 32
  return (vb)__builtin_shufflevector((units)r, (units)r, 0, 2, 1, 3);
#else
  return (vb)__builtin_shufflevector((units)r, (units)r, 0, 2, 4, 6, 1, 3, 5, 7);
#endif
}

/* One vector of each of four pixels as bytes, pixel by pixel. */
static inline vb bytes_of_four(vh a, vh b) {
  const vi r = (vi)pack_bytes(a, b);
#if WIDE == 16
  return (vb)r;
#elif WIDE == 32
  return (vb)__builtin_shufflevector(r, r, 0, 4, 1, 5, 2, 6, 3, 7);
#else
  return (vb)__builtin_shufflevector(r, r, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#endif
}

/* Bytes become numbers of 16 bits. */
static void widen(i16 *restrict to, const u8 *restrict from, long count) {
  long i = 0;
  for (; i + WIDE / 2 <= count; i += WIDE / 2)
    *(vh *)(to + i) = words_of(from + i);
  for (; i < count; i++) to[i] = from[i];
}
static void widen_weights(u8 *restrict to, const u8 *restrict from, long count) {
  for (long i = 0; i < count; i += WIDE / 2)
    *(vh *)(to + 2 * i) = words_of_signed(from + i);
}

/* Rows of a picture with pads, from row `top` of the padded picture on. */
static void pad_rows(u8 *restrict to, const u8 *restrict from, long top, long rows, long high, long wide, long left,
                     long right, long above, int zero) {
  for (long row = top - above; row < top - above + rows; row++, to += left + wide + right) {
    if (row < 0 || row >= high) {
      __builtin_memset(to, zero, left + wide + right);
      continue;
    }
    __builtin_memset(to, zero, left);
    __builtin_memcpy(to + left, from + row * wide, wide);
    __builtin_memset(to + left + wide, zero, right);
  }
}

#if WIDE == 64 && VBMI
/* Each byte's entry of a table of 256, of which the first and the third quarter are in registers. */
static inline vb found_in(vb x, vb first, vb third, const u8 *table) {
  vb low = x;
#if NATIVE && defined(__AVX512VBMI__)
  vb high = x;
  u64 upper;
  __asm__("vpermi2b %2, %1, %0" : "+v"(low) : "v"(first), OR_MEMORY(*(const vb *)(table + 64)));
  __asm__("vpermi2b %2, %1, %0" : "+v"(high) : "v"(third), OR_MEMORY(*(const vb *)(table + 192)));
  __asm__("vpmovb2m %1, %0" : "=k"(upper) : "v"(x));
  __asm__("vmovdqu8 %1, %0 %{%2%}" : "+v"(low) : "v"(high), "Yk"(upper));
#else
  EACH(WIDE) low[i] = table[x[i]];
#endif
  return low;
}
#endif

/* Each byte becomes another by a table of 256, which is stored as 16 tables of differences behind itself. */
static void look_up(u8 *y, long count, const u8 *table) {
  long i = 0;
#if NATIVE && WIDE == 64 && VBMI
  const vb first = *(const vb *)table, third = *(const vb *)(table + 128);
  for (; i + WIDE <= count; i += WIDE) *(vb_u *)(y + i) = found_in(*(vb_u *)(y + i), first, third, table);
#elif NATIVE
  for (; i + WIDE <= count; i += WIDE) {
    const vb x = *(vb_u *)(y + i);
    vb low = x, high = x ^ 128, found = {};
#pragma GCC unroll 8
    for (int part = 0; part < 8; part++) {
      found ^= look(*(const vb *)(table + 256 + part * WIDE), low);
      found ^= look(*(const vb *)(table + 256 + (8 + part) * WIDE), high);
      low = less_bytes(low, (vb){} + 16), high = less_bytes(high, (vb){} + 16);
    }
    *(vb_u *)(y + i) = found;
  }
#endif
  for (; i < count; i++) y[i] = table[y[i]];
}

static void add_residual(u8 *restrict y, const u8 *restrict r, long count, const struct end *e) {
  const i32 a = (i16)e->factors, b = e->factors >> 16;
  long i = 0;
#if NATIVE
  const vh factors = (vh)splat(e->factors);
  const vi offset = splat(e->offset);
  const vb low = (vb){} + (u8)e->sum_low, high = (vb){} + (u8)e->sum_high;
  for (; i + WIDE <= count; i += WIDE) {
    const vb p = *(vb_u *)(y + i), q = *(const vb_u *)(r + i), none = {};
    const vb first = low_bytes(p, q), second = high_bytes(p, q);
    const vi s0 = (dot_words((vh)low_bytes(first, none), factors) + offset) >> e->shift;
    const vi s1 = (dot_words((vh)high_bytes(first, none), factors) + offset) >> e->shift;
    const vi s2 = (dot_words((vh)low_bytes(second, none), factors) + offset) >> e->shift;
    const vi s3 = (dot_words((vh)high_bytes(second, none), factors) + offset) >> e->shift;
    *(vb_u *)(y + i) = least(most(pack_bytes(pack_words(s0, s1), pack_words(s2, s3)), low), high);
  }
#endif
  for (; i < count; i++) y[i] = clamp_byte((a * y[i] + b * r[i] + e->offset) >> e->shift, e->sum_low, e->sum_high);
}
