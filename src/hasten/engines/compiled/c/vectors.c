/* Bytes and sums in vectors of W bytes; included once for each width, behind bytes.c. A sum is an int32, so a
   vector vi has W / 4 of them, and four vectors become one of bytes. Names end in the width: packed_32.
   Macros say which instructions there are: X86, ARM, AVX512 (with bw and vl), VBMI, and DOTS of
   bytes (1: with VEX, 2: with EVEX, 3: on ARM, of bytes from which SHIFT was taken).
   Instructions are spelled, since compilers have different names for them and move loads far away. */

#define VECTOR(type, name) \
  typedef type N(name) __attribute__((vector_size(W), may_alias)); \
  typedef type N(name##_u) __attribute__((vector_size(W), aligned(1), may_alias));
VECTOR(i32, vi)
VECTOR(float, vf)
VECTOR(u8, vb)
VECTOR(i16, vh)
VECTOR(i64, vl)
#undef VECTOR

#define WIDE (AVX && W > 16)
#if ARM
#define OF_TWO(name, kind, to, a, b) asm(name " %0." kind ", %1." kind ", %2." kind : "=w"(to) : "w"(a), "w"(b))
#define LOW_BYTES(to, a, b) OF_TWO("zip1", "16b", to, a, b)
#define HIGH_BYTES(to, a, b) OF_TWO("zip2", "16b", to, a, b)
#define LOW_WORDS(to, a, b) OF_TWO("zip1", "8h", to, a, b)
#define HIGH_WORDS(to, a, b) OF_TWO("zip2", "8h", to, a, b)
#elif AVX
#define PREFIX "v"
#define OF_TWO(name, to, a, b) asm("v" name " %2, %1, %0" : "=" ANY(to) : ANY(a), ANY(b))
#else
#define PREFIX ""
#define OF_TWO(name, to, a, b) \
  do { \
    __typeof__(to) first_ = (__typeof__(to))(a); \
    asm(name " %1, %0" : "+x"(first_) : "x"(b)); \
    to = first_; \
  } while (0)
#endif
#if X86
#define LOW_BYTES(to, a, b) OF_TWO("punpcklbw", to, a, b)
#define HIGH_BYTES(to, a, b) OF_TWO("punpckhbw", to, a, b)
#define LOW_WORDS(to, a, b) OF_TWO("punpcklwd", to, a, b)
#define HIGH_WORDS(to, a, b) OF_TWO("punpckhwd", to, a, b)
#endif

/* The nearest integers, halves to even. */
INLINE N(vi) N(rounded_float)(N(vf) scaled) {
#if X86
  N(vi) found;
  asm(PREFIX "cvtps2dq %1, %0" : "=" ANY(found) : ANY(scaled));
  return found;
#elif ARM
  N(vi) found;
  asm("fcvtns %0.4s, %1.4s" : "=w"(found) : "w"(scaled));
  return found;
#else
  const float most = 1 << 20, shift = 3 << 22;
  N(vi) above = scaled > most, below = scaled < -most;
  N(vf) bound = (N(vf)){0} + most;
  scaled = (N(vf))(((N(vi))bound & above) | ((N(vi))(-bound) & below) | ((N(vi))scaled & ~(above | below)));
  return (N(vi))(scaled + shift) - as_i32(shift);
#endif
}

INLINE N(vi) N(rounded)(N(vi) sum, N(vf) scale) {
  return N(rounded_float)(__builtin_convertvector(sum, N(vf)) * scale);
}

/* The same with sums below 0 multiplied by a slope, which is at most 1. */
INLINE N(vi) N(sloped)(N(vi) sum, N(vf) scale, N(vf) slope) {
  N(vf) scaled = __builtin_convertvector(sum, N(vf)) * scale, other = scaled * slope;
#if X86
  OF_TWO("maxps", scaled, scaled, other);
#elif ARM
  OF_TWO("fmax", "4s", scaled, scaled, other);
#else
  N(vi) above = scaled > other;
  scaled = (N(vf))(((N(vi))scaled & above) | ((N(vi))other & ~above));
#endif
  return N(rounded_float)(scaled);
}

/* x / step, as exact as division is; numbers beyond the bound, and NaN, become the bound, or its negative. */
INLINE N(vf) N(divided)(N(vf) x, float step, float inverse, float bound) {
  const N(vf) most = (N(vf)){0} + bound, least = -most;
#if X86
  OF_TWO("maxps", x, x, least);
  OF_TWO("minps", x, x, most);
#else
  for (int i = 0; i < W / 4; i++) x[i] = x[i] > -bound ? x[i] : -bound, x[i] = x[i] < bound ? x[i] : bound;
#endif
#if AVX && FMA
  if (inverse) {
    const N(vf) steps = (N(vf)){0} + step, inverses = (N(vf)){0} + inverse;
    N(vf) near = x * inverses;
    asm("vfnmadd231ps %2, %1, %0" : "+" ANY(x) : ANY(near), ANY(steps));
    asm("vfmadd231ps %2, %1, %0" : "+" ANY(near) : ANY(x), ANY(inverses));
    return near;
  }
#endif
  return x / step;
}

INLINE N(vb) N(larger)(N(vb) a, N(vb) b) {
#if X86
  OF_TWO("pmaxub", a, a, b);
  return a;
#elif ARM
  OF_TWO("umax", "16b", a, a, b);
  return a;
#else
  N(vb) above = (N(vb))(a > b);
  return (a & above) | (b & ~above);
#endif
}

INLINE N(vb) N(clamped)(N(vb) q, u8 low, u8 high) {
  N(vb) lows = (N(vb)){0} + low, highs = (N(vb)){0} + high;
#if X86
  if (low > 0) OF_TWO("pmaxub", q, q, lows);
  if (high < 255) OF_TWO("pminub", q, q, highs);
  return q;
#elif ARM
  if (low > 0) OF_TWO("umax", "16b", q, q, lows);
  if (high < 255) OF_TWO("umin", "16b", q, q, highs);
  return q;
#else
  N(vb) below = (N(vb))(q < lows), above = (N(vb))(q > highs);
  return (lows & below) | (highs & above) | (q & ~(below | above));
#endif
}

/* Two vectors as 16 bits, saturated: within each 16 bytes, 4 of a and 4 of b. */
INLINE N(vh) N(halved)(N(vi) a, N(vi) b) {
  N(vh) both;
#if X86
  OF_TWO("packssdw", both, a, b);
#elif ARM
  asm("sqxtn %0.4h, %1.4s\n\tsqxtn2 %0.8h, %2.4s" : "=&w"(both) : "w"(a), "w"(b));
#else
  for (int i = 0; i < W / 2; i++)
    both[i] = clamp_byte((i % 8 < 4 ? a : b)[i / 8 * 4 + i % 4], -32768, 32767);
#endif
  return both;
}

/* Bytes of four vectors that were halved, after zero was added: within each 16 bytes, 4 of each vector. */
INLINE N(vb) N(laned)(N(vh) ab, N(vh) cd, i32 zero) {
  N(vb) all;
#if X86
  N(vh) zeros = (N(vh)){0} + (i16)zero;
  if (zero) {
    OF_TWO("paddsw", ab, ab, zeros);
    OF_TWO("paddsw", cd, cd, zeros);
  }
  OF_TWO("packuswb", all, ab, cd);
#elif ARM
  const N(vh) zeros = (N(vh)){0} + (i16)zero;
  if (zero) {
    OF_TWO("sqadd", "8h", ab, ab, zeros);
    OF_TWO("sqadd", "8h", cd, cd, zeros);
  }
  asm("sqxtun %0.8b, %1.8h\n\tsqxtun2 %0.16b, %2.8h" : "=&w"(all) : "w"(ab), "w"(cd));
#else
  for (int i = 0; i < W; i++)
    all[i] = clamp_byte((i % 16 < 8 ? ab : cd)[i / 16 * 8 + i % 8] + zero, 0, 255);
#endif
  return all;
}

/* The same one behind the other: all of the first vector, of the second, ... */
INLINE N(vb) N(packed)(N(vh) ab, N(vh) cd, i32 zero) {
  N(vb) all = N(laned)(ab, cd, zero);
#if WIDE
#if W == 32
  const N(vi) order = {0, 4, 1, 5, 2, 6, 3, 7};
#else
  const N(vi) order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
#endif
  OF_TWO("permd", all, order, all);
  return all;
#elif W == 16
  return all;
#else
  N(vi) found;
  for (int i = 0; i < W / 4; i++) found[i] = ((N(vi))all)[i % (W / 16) * 4 + i / (W / 16)];
  return (N(vb))found;
#endif
}

#if WIDE
/* 16 bytes of memory in each 16 bytes. */
INLINE N(vb) N(repeated)(const u8 *from) {
  typedef u8 sixteen __attribute__((vector_size(16), aligned(1), may_alias));
  N(vb) all;
#if W == 32
  asm("vbroadcasti128 %1, %0" : "=x"(all) : "m"(*(const sixteen *)from));
#else
  asm("vbroadcasti32x4 %1, %0" : "=v"(all) : "m"(*(const sixteen *)from));
#endif
  return all;
}
#endif

/* Each byte's entry of a table of 256. */
INLINE N(vb) N(looked_up)(N(vb) q, const u8 *table) {
#if AVX && VBMI && (W == 64 || !defined(__clang__)) /* clang has no name for all 64 bytes of a shorter vector */
  /* Each quarter of the table fills a register of 64 bytes, whatever W is: the other half counts nothing. */
  N(vb) low = q, high = q;
  typedef u8 quarters __attribute__((vector_size(64), aligned(1), may_alias));
  const quarters *quarter = (const quarters *)table;
  asm("vpermi2b %2, %1, %g0" : "+v"(low) : "v"(quarter[0]), "v"(quarter[1]));
  asm("vpermi2b %2, %1, %g0" : "+v"(high) : "v"(quarter[2]), "v"(quarter[3]));
  u64 upper;
  asm("vpmovb2m %1, %0" : "=k"(upper) : "v"(q));
  asm("vmovdqu8 %1, %0 %{%2%}" : "+v"(low) : "v"(high), "Yk"(upper));
  return low;
#elif WIDE
  /* A shuffle takes 4 bits; each other bit of the number, shifted to the top of its byte, chooses of two. */
  const N(vb) four = q & 15;
  const N(vi) bit4 = (N(vi))q << 3, bit5 = (N(vi))q << 2, bit6 = (N(vi))q << 1;
#define LOOK(name, number) \
  N(vb) name; \
  OF_TWO("pshufb", name, N(repeated)(table + 16 * number), four)
#if W == 32
#define CHOOSE(a, b, bit) asm("vpblendvb %2, %1, %0, %0" : "+x"(a) : "x"(b), "x"(bit))
#define BITS(name, bit) const N(vi) name = bit
#else
#define CHOOSE(a, b, bit) asm("vmovdqu8 %1, %0 %{%2%}" : "+v"(a) : "v"(b), "Yk"(bit))
#define BITS(name, bit) \
  u64 name; \
  asm("vpmovb2m %1, %0" : "=k"(name) : "v"(bit))
#endif
  BITS(b4, bit4);
  BITS(b5, bit5);
  BITS(b6, bit6);
  BITS(b7, (N(vi))q);
#define FOUR(name, number) \
  LOOK(name, number); \
  LOOK(name##1, (number + 1)); \
  CHOOSE(name, name##1, b4); \
  LOOK(name##2, (number + 2)); \
  LOOK(name##3, (number + 3)); \
  CHOOSE(name##2, name##3, b4); \
  CHOOSE(name, name##2, b5)
  FOUR(t, 0);
  FOUR(u, 4);
  CHOOSE(t, u, b6);
  FOUR(v, 8);
  FOUR(w, 12);
  CHOOSE(v, w, b6);
  CHOOSE(t, v, b7);
#undef FOUR
#undef BITS
#undef CHOOSE
#undef LOOK
  return t;
#else
  u8 each[W];
  COPY(each, &q, W);
  for (int i = 0; i < W; i++) each[i] = table[each[i]];
  return *(const N(vb_u) *)each;
#endif
}

/* (a * q + b * r + offset) >> shift of bytes, as bytes. */
INLINE N(vb) N(summed)(N(vb) q, N(vb) r, i32 a, i32 b, i32 offset, i32 shift) {
#if X86
  const N(vi) factors = (N(vi)){0} + (i32)((u32)b << 16 | (u32)(a & 0xffff));
  const N(vb) none = {0};
  N(vb) low, high, all;
  N(vi) sum1, sum2, sum3, sum4;
#define MADE(to, how, from) \
  OF_TWO("punpck" how, to, from, none); \
  OF_TWO("pmaddwd", to, to, factors); \
  to = (to + offset) >> shift
  OF_TWO("punpcklbw", low, q, r);
  OF_TWO("punpckhbw", high, q, r);
  MADE(sum1, "lbw", low);
  MADE(sum2, "hbw", low);
  MADE(sum3, "lbw", high);
  MADE(sum4, "hbw", high);
#undef MADE
  const N(vh) half1 = N(halved)(sum1, sum2), half2 = N(halved)(sum3, sum4);
  OF_TWO("packuswb", all, half1, half2);
  return all;
#else
  u8 each[W], other[W];
  COPY(each, &q, W);
  COPY(other, &r, W);
  for (int i = 0; i < W; i++) each[i] = clamp_byte((a * each[i] + b * other[i] + offset) >> shift, 0, 255);
  return *(const N(vb_u) *)each;
#endif
}

/* Bytes added to sums of 16 bits: in each 16 bytes, the first 8 to the first. */
INLINE void N(split_added)(N(vh) *first, N(vh) *second, N(vb) q) {
#if X86
  const N(vb) none = {0};
  N(vh) low, high;
  OF_TWO("punpcklbw", low, q, none);
  OF_TWO("punpckhbw", high, q, none);
  *first += low;
  *second += high;
#elif ARM
  asm("uaddw %0.8h, %0.8h, %1.8b" : "+w"(*first) : "w"(q));
  asm("uaddw2 %0.8h, %0.8h, %1.16b" : "+w"(*second) : "w"(q));
#else
  for (int i = 0; i < W; i++) (*(i % 16 < 8 ? first : second))[i / 16 * 8 + i % 8] += q[i];
#endif
}

/* Numbers of 16 bits without sign added to sums: in each 16 bytes, the first 4 to the first. */
INLINE void N(wide_added)(N(vi) *first, N(vi) *second, N(vh) q) {
#if X86
  const N(vb) none = {0};
  N(vi) low, high;
  OF_TWO("punpcklwd", low, q, none);
  OF_TWO("punpckhwd", high, q, none);
  *first += low;
  *second += high;
#elif ARM
  asm("uaddw %0.4s, %0.4s, %1.4h" : "+w"(*first) : "w"(q));
  asm("uaddw2 %0.4s, %0.4s, %1.8h" : "+w"(*second) : "w"(q));
#else
  for (int i = 0; i < W / 2; i++) (*(i % 8 < 4 ? first : second))[i / 8 * 4 + i % 4] += (i32)(q[i] & 0xffff);
#endif
}

#if WIDE
/* Bytes of each 16 by their numbers; 0 where a number's top bit is set. */
INLINE N(vb) N(shuffled)(N(vb) from, N(vb) numbers) {
  OF_TWO("pshufb", from, from, numbers);
  return from;
}
#endif

/* The first half of a vector, or the second. */
INLINE void N(put_half)(u8 *to, N(vb) v, int second) {
#if WIDE && W == 32
  if (second) asm("vextracti128 $1, %1, %0" : "=m"(*(struct { u8 all[16]; } *)to) : "x"(v));
  else asm("vmovdqu %x1, %0" : "=m"(*(struct { u8 all[16]; } *)to) : "x"(v));
#elif WIDE
  if (second) asm("vextracti64x4 $1, %1, %0" : "=m"(*(struct { u8 all[32]; } *)to) : "v"(v));
#ifdef __clang__ /* which may hold in a mask what a comparison gave, and then has no name for it here */
  else __builtin_memcpy(to, &v, 32);
#else
  else asm("vmovdqu8 %t1, %0" : "=m"(*(struct { u8 all[32]; } *)to) : "v"(v));
#endif
#else
  for (int i = 0; i < W / 16; i++) {
    const i64 part = ((N(vl))v)[second * W / 16 + i];
    COPY(to + 8 * i, &part, 8);
  }
#endif
}

/* A vector that is loaded here and now: a compiler would load all of a loop's before it, and spill them. */
INLINE N(vi) N(loaded)(const void *from) {
#if WIDE
  N(vi) found;
  asm volatile("vmovdqu" EVEX_SUFFIX " %1, %0" : "=" ANY(found) : "m"(*(const N(vi_u) *)from));
  return found;
#elif ARM && !defined(__clang__) /* which computes each address apart */
  N(vi) found;
  asm volatile("ldr %q0, %1" : "=w"(found) : "m"(*(const N(vi_u) *)from));
  return found;
#else
  return *(const N(vi_u) *)from;
#endif
}

/* Products of each sum's own TAPS bytes, or numbers of 16 bits, added to the sums; in one statement, since a
   compiler would put all additions behind all products. */
#if WIDE && DOTS == 2
#define DOTTED(sum, x, how, w) asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), how(w))
#elif WIDE && DOTS == 1
#define DOTTED(sum, x, how, w) asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), how(w))
#elif WIDE
#define DOTTED(sum, x, how, w) \
  N(vi) made; \
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+" ANY(sum), "=&" ANY(made) : ANY(x), how(w))
#elif X86
#define DOTTED(sum, x, how, w) \
  OF_TWO("pmaddwd", x, x, w); \
  sum += x
#elif ARM && DOTS == 3
#define DOTTED(sum, x, how, w) \
  asm(".arch_extension dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(x), "w"(w))
#elif TAPS == 4
#define DOTTED(sum, x, how, w) \
  const N(vb) ones = (N(vb))x, twos = (N(vb))w; \
  for (int i = 0; i < W; i++) sum[i / 4] += (ones[i] ^ SHIFT) * (i8)twos[i] - SHIFT * (i8)twos[i]
#else
#define DOTTED(sum, x, how, w) sum += ((x << 16) >> 16) * ((w << 16) >> 16) + (x >> 16) * (w >> 16)
#endif
INLINE N(vi) N(dotted)(N(vi) sum, N(vi) x, N(vi) w) {
  DOTTED(sum, x, ANY, w);
  return sum;
}
INLINE N(vi) N(dotted_at)(N(vi) sum, N(vi) x, const u8 *w) {
  DOTTED(sum, x, "m", (*(const N(vi) *)w));
  return sum;
}
#undef DOTTED

/* Vectors of braids full of one byte. */
INLINE void N(filled)(u8 *to, long vectors, u8 value) {
#if TAPS == 4
  const N(vb) all = (N(vb)){0} + (u8)(value ^ SHIFT);
#else
  const N(vh) all = (N(vh)){0} + (i16)value;
#endif
  for (long i = 0; i < vectors; i++) *(N(vb) *)(to + i * W) = (N(vb))all;
}

#if TAPS == 4
/* A pixel's bytes of up to four rows side by side, for four vectors of sums whose channels lie in lanes; what
   stands for rows behind `rows` counts nothing. */
INLINE void N(crossed)(N(vi) *x0, N(vi) *x1, N(vi) *x2, N(vi) *x3, const u8 *r0, const u8 *r1, const u8 *r2,
                       const u8 *r3, int rows) {
#if X86 || ARM
  N(vb) a = *(const N(vb_u) *)r0, b = a, c = a, d = a, ab, ab2, cd, cd2;
  if (rows > 1) b = *(const N(vb_u) *)r1;
  if (rows > 2) c = *(const N(vb_u) *)r2;
  if (rows > 3) d = *(const N(vb_u) *)r3;
#if SHIFT
  a ^= SHIFT, b ^= SHIFT, c ^= SHIFT, d ^= SHIFT;
#endif
  LOW_BYTES(ab, a, b);
  HIGH_BYTES(ab2, a, b);
  LOW_BYTES(cd, c, d);
  HIGH_BYTES(cd2, c, d);
  LOW_WORDS(*x0, ab, cd);
  HIGH_WORDS(*x1, ab, cd);
  LOW_WORDS(*x2, ab2, cd2);
  HIGH_WORDS(*x3, ab2, cd2);
#else
  const u8 *const of[] = {r0, r1, r2, r3};
  u8 each[4 * W];
  for (int part = 0; part < 4; part++)
    for (int lane = 0; lane < W / 4; lane++)
      for (int row = 0; row < 4; row++)
        each[part * W + lane * 4 + row] = of[row][lane / 4 * 16 + part * 4 + lane % 4] ^ SHIFT;
  COPY(x0, each, W);
  COPY(x1, each + W, W);
  COPY(x2, each + 2 * W, W);
  COPY(x3, each + 3 * W, W);
#endif
}
#endif

/* Some columns of rows of a picture, each W bytes; those beyond the picture are pads. */
static void N(framed)(u8 *to, const u8 *const *rows, long high, long start, long columns, long wide, long pitch, u8 zero) {
  const N(vb) pads = (N(vb)){0} + zero;
  for (long row = 0; row < high; row++)
    for (long at = start; at < start + columns; at++, to += W)
      if (at < 0 || at >= wide) *(N(vb) *)to = pads;
      else *(N(vb) *)to = *(const N(vb_u) *)(rows[row] + at * pitch);
}

/* Rows of a picture of bytes side by side, so that a sum's taps are neighbours: of each pixel of so many, `parts`
   vectors, each sum of which sees its own channel in TAPS rows. With 4 parts, channels lie in lanes. */
INLINE void N(braided)(u8 *to, const u8 *const *rows, long pixels, long pitch, int parts) {
#if !X86 && !ARM
  const long lanes = W / 4;
  for (long i = 0; i < pixels; i++)
    for (long sum = 0; sum < lanes * parts; sum++)
      for (long tap = 0; tap < TAPS; tap++) {
        const long lane = sum % lanes;
        const long channel = parts == 4 ? lane / 4 * 16 + sum / lanes * 4 + lane % 4 : sum;
        const u8 q = rows[tap][i * pitch + channel];
        const long place = (i * lanes * parts + sum) * TAPS + tap;
        if (TAPS == 4) to[place] = q ^ SHIFT;
        else ((i16 *)to)[place] = q;
      }
#else
  typedef N(vb) whole;
  typedef u8 sixteen __attribute__((vector_size(16), may_alias));
  typedef i64 eight __attribute__((vector_size(16), may_alias));
  typedef i64 four __attribute__((vector_size(16), may_alias));
  typedef u8 sixteen_u __attribute__((vector_size(16), aligned(1), may_alias));
#define GET(type, number) GET_##type(rows[number] + at)
#define GET_whole(from) *(const N(vb_u) *)(from)
#define GET_sixteen(from) *(const sixteen_u *)(from)
#define GET_eight(from) (eight){first_bytes(from, 8)}
#define GET_four(from) (four){first_bytes(from, 4)}
#if TAPS == 4
#define BRAID(type) \
  const type a = GET(type, 0), b = GET(type, 1), c = GET(type, 2), d = GET(type, 3); \
  type ab, cd, ab2, cd2, first, second, third, fourth; \
  LOW_BYTES(ab, a, b); \
  HIGH_BYTES(ab2, a, b); \
  LOW_BYTES(cd, c, d); \
  HIGH_BYTES(cd2, c, d); \
  LOW_WORDS(first, ab, cd); \
  HIGH_WORDS(second, ab, cd); \
  LOW_WORDS(third, ab2, cd2); \
  HIGH_WORDS(fourth, ab2, cd2);
#else
#define BRAID(type) \
  const type a = GET(type, 0), b = GET(type, 1), none = {0}; \
  type ab, ab2, first, second, third, fourth; \
  LOW_BYTES(ab, a, b); \
  HIGH_BYTES(ab2, a, b); \
  LOW_BYTES(first, ab, none); \
  HIGH_BYTES(second, ab, none); \
  LOW_BYTES(third, ab2, none); \
  HIGH_BYTES(fourth, ab2, none);
#endif
#if SHIFT
#define PUT(type, place, value) *(type *)(to + (place)) = (type)((N(vb))value ^ SHIFT)
#else
#define PUT(type, place, value) *(type *)(to + (place)) = value
#endif
  for (long i = 0; i < pixels; i++, to += parts * W) {
    const long at = i * pitch;
    if (parts == 4) {
      BRAID(whole)
      PUT(whole, 0, first);
      PUT(whole, W, second);
      PUT(whole, 2 * W, third);
      PUT(whole, 3 * W, fourth);
    } else if (parts * W == 64) {
      BRAID(sixteen)
      PUT(sixteen, 0, first);
      PUT(sixteen, 16, second);
      PUT(sixteen, 32, third);
      PUT(sixteen, 48, fourth);
    } else if (parts * W == 32) {
      BRAID(eight)
      PUT(eight, 0, first);
      PUT(eight, 16, second);
    } else {
      BRAID(four)
      PUT(four, 0, first);
    }
  }
#undef PUT
#undef BRAID
#undef GET
#undef GET_whole
#undef GET_sixteen
#undef GET_eight
#undef GET_four
#endif
}

